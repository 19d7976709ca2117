"""Each defect of the chaos job's reward hits one call, and is a data failure."""

from __future__ import annotations

import pytest

from kray.faults import rewards
from kray.faults.injector import DEFECTS, KINDS
from kray.rewards.outcome import Outcome, Ranges
from kray.rewards.worker import _encode_reply, _score, take_replies


@pytest.mark.parametrize("kind", [kind for kind in DEFECTS if kind != "reward hangs"])
def test_each_defect_hits_one_call(tmp_path, kind):
    def scored() -> Outcome:
        ended = _score(rewards.judge, "faults", "4", "4", {"control": str(tmp_path)})
        (reply,) = take_replies(bytearray(_encode_reply(ended)))
        given = Outcome(reply[1], reply[2]) if reply[0] == "scored" else Outcome(None, error=reply[1])
        return Ranges("faults").apply("", given)

    assert kind in KINDS
    rewards.order(tmp_path, DEFECTS[kind], 1)
    hit, other = scored(), scored()
    assert hit.reward is None
    assert hit.error.isprintable()
    assert other.reward == 1.0
    assert other.detail.isprintable()
    assert list(tmp_path.iterdir()) == []
