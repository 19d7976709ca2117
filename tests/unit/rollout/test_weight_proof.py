"""New weights are proved: laws of the doubt about an engine, and stories of vLLM engines that do not take weights in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kray.weight_sync.flat_weights import FlatWeights
from kray.weight_sync.proof import Reactions, Stopwatch, exaggerated

ANSWER = np.float32([-1.0, -2.0])


def pack(**values: float) -> FlatWeights:
    return FlatWeights.pack([(name, torch.full((2, 3), value)) for name, value in values.items()])


@pytest.mark.parametrize(
    ("weights", "probe", "answer", "ignored"),
    [
        (pack(a=1, b=3), (1, 2, 3), ANSWER, ["b"]),  # it did not react
        (pack(a=2, b=3), (1, 2, 3), ANSWER, ["a", "b"]),
        (pack(a=1, b=2), (1, 2, 3), ANSWER, []),  # nothing changed
        (pack(a=1, b=3), (1, 2, 3), np.float32([-1.0, -2.0000002]), []),  # it did, if only a little
        (pack(a=1, b=3), (1, 2, 4), ANSWER, []),  # another question
    ],
)
def test_only_an_equal_answer_after_a_change_is_suspicious(weights, probe, answer, ignored):
    reactions = Reactions()
    assert reactions.ignored(weights, probe, answer) == []  # a new engine cannot ignore anything
    reactions.remember(pack(a=1, b=2), (1, 2, 3), ANSWER)
    assert reactions.ignored(weights, probe, answer) == ignored


def test_exaggeration_changes_the_named_tensors_and_no_others():
    state = [("a", torch.tensor([[1.0, 2.0], [3.0, 1.0]])), ("b", torch.ones(3)), ("c", torch.arange(4))]
    turned = dict(exaggerated(FlatWeights.pack(state), ["a", "b"]).verified())
    assert turned["a"].tolist() == [[-1.0, -3.0], [-2.0, -1.0]]
    assert turned["b"].tolist() == [-1.0] * 3  # also one that reads the same from both ends
    assert turned["c"].tolist() == [0, 1, 2, 3]


def test_parts_of_a_stopwatch_do_not_overlap():
    watch = Stopwatch()
    assert list(watch.each("inner", range(5))) == [0, 1, 2, 3, 4]
    watch.done("outer")
    watch.done("after")
    assert list(watch.seconds) == ["inner", "outer", "after"]
    assert min(watch.seconds.values()) >= 0
