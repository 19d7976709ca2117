"""Engines that keep computing with old weights are detected."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kray.rollout.stopwatch import Stopwatch
from kray.weight_sync.flat_weights import FlatWeights
from kray.weight_sync.proof import ProbeHistory, perturbed

LOGPROBS = np.float32([-1.0, -2.0])


def pack(**values: float) -> FlatWeights:
    return FlatWeights.pack([(name, torch.full((2, 3), value)) for name, value in values.items()])


@pytest.mark.parametrize(
    ("weights", "probe", "logprobs", "names"),
    [
        (pack(a=1, b=3), (1, 2, 3), LOGPROBS, ["b"]),  # no effect
        (pack(a=2, b=3), (1, 2, 3), LOGPROBS, ["a", "b"]),
        (pack(a=1, b=2), (1, 2, 3), LOGPROBS, []),  # nothing changed
        (pack(a=1, b=3), (1, 2, 3), np.float32([-1.0, -2.0000002]), []),  # a small effect
        (pack(a=1, b=3), (1, 2, 4), LOGPROBS, []),  # another probe
    ],
)
def test_equal_logprobs_after_a_change_are_reported(weights, probe, logprobs, names):
    history = ProbeHistory()
    assert history.changed_without_effect(weights, probe, logprobs) == []  # nothing was recorded before
    history.record(pack(a=1, b=2), (1, 2, 3), LOGPROBS)
    assert history.changed_without_effect(weights, probe, logprobs) == names


def test_perturbed_changes_the_named_tensors_only():
    state = [("a", torch.tensor([[1.0, 2.0], [3.0, 1.0]])), ("b", torch.ones(3)), ("c", torch.arange(4))]
    changed = dict(perturbed(FlatWeights.pack(state), ["a", "b"]).verified())
    assert changed["a"].tolist() == [[-1.0, -3.0], [-2.0, -1.0]]
    assert changed["b"].tolist() == [-1.0] * 3  # also one that reads the same from both ends
    assert changed["c"].tolist() == [0, 1, 2, 3]


def test_stopwatch_parts_do_not_overlap():
    watch = Stopwatch()
    assert list(watch.each("inner", range(5))) == [0, 1, 2, 3, 4]
    watch.done("outer")
    watch.done("after")
    assert list(watch.seconds) == ["inner", "outer", "after"]
    assert min(watch.seconds.values()) >= 0
