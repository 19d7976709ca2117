"""A report is the same after its journey."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kray.records import Rollout
from kray.rollout.outcome import EngineReport

lengths = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@given(st.lists(lengths, max_size=5), st.dictionaries(st.integers(0, 9), st.integers(1, 9)), st.booleans())
def test_report_survives_pickling(tasks, progress, refused):
    rng = np.random.default_rng(0)
    report = EngineReport(progress=progress, refused=[(7, "too long")] if refused else [], busy_s=1.5, sampled=7)
    for task_id, sizes in enumerate(tasks):
        rollouts = []
        for index, size in enumerate(sizes):
            tokens, logprobs = rng.integers(0, 99, size, dtype=np.int32), rng.random(size, dtype=np.float32)
            versions = ((1, 0, 1), (2, 1, size)) if size > 1 else ((1, 0, size),)
            rollouts.append(Rollout(f"p{task_id}", index, tokens, logprobs, "stop", versions))
        report.finished.append((task_id, rollouts))
    found = pickle.loads(pickle.dumps(report, protocol=5))
    assert (found.progress, found.refused, found.busy_s) == (report.progress, report.refused, 1.5)
    assert found.sampled == 7
    assert [task_id for task_id, _ in found.finished] == list(range(len(tasks)))
    for (_, before), (_, after) in zip(report.finished, found.finished, strict=True):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert np.array_equal(one.tokens, other.tokens)
            assert np.array_equal(one.logprobs, other.logprobs)
            assert other.tokens.dtype == np.int32
            assert other.logprobs.dtype == np.float32
            mine = (one.prompt_id, one.index, one.finish_reason, one.policy_versions)
            assert mine == (other.prompt_id, other.index, other.finish_reason, other.policy_versions)
