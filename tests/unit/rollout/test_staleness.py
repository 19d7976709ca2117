"""No token over the bound reaches the learner."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.records import Prompt, Rollout, RolloutGroup
from kray.rollout.staleness import fresh

NOW = 9
spans = st.lists(st.tuples(st.integers(0, NOW), st.integers(1, 5)), min_size=1, max_size=4)


def group_of(rollouts) -> RolloutGroup:
    made = []
    for index, parts in enumerate(rollouts):
        ends = np.cumsum([length for _, length in parts])
        versions = tuple((v, int(e - n), int(e)) for (v, n), e in zip(sorted(parts), ends, strict=True))
        none = np.zeros(int(ends[-1]), dtype=np.float32)
        made.append(Rollout("p", index, none.astype(np.int32), none, "stop", versions))
    return RolloutGroup(Prompt("p", "1", "exact", "test", text="?"), (1,), made, 1.0)


@given(st.lists(st.lists(spans, min_size=1, max_size=3), max_size=5), st.integers(0, NOW))
def test_groups_are_kept_whole_or_dropped_and_counted(drawn, limit):
    groups = [group_of(rollouts) for rollouts in drawn]
    kept, metrics = fresh(groups, NOW, limit)
    ages = [max(NOW - v for r in g.rollouts for v, _, _ in r.policy_versions) for g in groups]
    assert kept == [group for group, age in zip(groups, ages, strict=True) if age <= limit]
    assert metrics["staleness/dropped_groups"] == len(groups) - len(kept)
    tokens = [
        NOW - v for g in kept for r in g.rollouts for v, start, end in r.policy_versions for _ in range(start, end)
    ]
    assert metrics["staleness/max"] == max(tokens, default=0)
    assert metrics["staleness/mean"] == pytest.approx(np.mean(tokens) if tokens else 0)


def test_a_token_of_a_later_policy_is_a_defect():
    with pytest.raises(ValueError, match="later than version 8"):
        fresh([group_of([[(9, 3)]])], 8, 5)
