"""Whether judging took too long is not read from what a verifier or a policy wrote."""

from __future__ import annotations

import numpy as np

from kray.records import Allocation, Prompt, Rollout, RolloutGroup
from kray.rollout.collected import CollectedStep


def group(name: str, late: list[bool], detail: str = "timeout after 1.5 s") -> RolloutGroup:
    rollouts = [
        Rollout(name, i, np.zeros(1, np.int32), np.zeros(1, np.float32), "stop", (), "", 0.0, detail, reward_late=one)
        for i, one in enumerate(late)
    ]
    return RolloutGroup(Prompt(name, "1", "exact", "test", text="text"), (1,), rollouts, 1.0)


def test_details_that_speak_of_a_timeout_put_no_prompt_into_quarantine():
    none = np.zeros(0)
    allocation = Allocation([], none.astype(np.int64), none, none, none)
    groups = [group("program loops", [False, False]), group("late", [True, True], ""), group("once", [True, False])]
    usable, failed = CollectedStep(allocation, groups).results()
    assert usable == ["once", "program loops"]
    assert failed == {"late": (1, "judging it takes longer than reward.timeout_s")}
