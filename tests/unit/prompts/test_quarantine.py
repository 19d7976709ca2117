"""Laws of the quarantine."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from kray.prompts.quarantine import Quarantine

STEPS = st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)), max_size=20)  # prompt -> failures, 0: fine


@given(steps=STEPS, after=st.integers(0, 4), cut=st.integers(0, 20))
def test_quarantine_is_permanent_and_survives_checkpoints(steps, after, cut):
    quarantine, in_a_row, gone = Quarantine(after), dict.fromkeys("abc", 0), set()
    for number, step in enumerate(steps):
        if number == cut:
            kept = json.loads(json.dumps(quarantine.to_dict()))
            quarantine = Quarantine(after)
            quarantine.load_dict(kept)
        step = {prompt_id: times for prompt_id, times in step.items() if prompt_id not in quarantine}
        fine = [prompt_id for prompt_id, times in step.items() if not times]
        failed = {prompt_id: (times, "why") for prompt_id, times in step.items() if times}
        caught = quarantine.visited(fine, failed)
        for prompt_id, times in step.items():
            in_a_row[prompt_id] = in_a_row[prompt_id] + times if times else 0
        expected = {prompt_id for prompt_id in failed if after and in_a_row[prompt_id] >= after}
        assert set(caught) == expected
        gone |= expected
        assert set(quarantine.left_out) == gone
        assert quarantine.metrics() == {"prompts/quarantined": len(gone)}
