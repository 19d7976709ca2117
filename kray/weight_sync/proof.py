"""How an engine proves that it computes with the weights that the learner sent."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kray.weight_sync.flat_weights import FlatWeights


@dataclass(frozen=True, slots=True)
class Proof:
    """What an engine answers to new weights.

    logprobs: (P - 1,) float32 of the probe's tokens after the first. checksum: of the weights that it loaded, as
    FlatWeights.checksum. seconds: verify, load, probe and, when it was doubted, doubt.
    """

    logprobs: np.ndarray
    checksum: str
    seconds: dict[str, float]


class Stopwatch:
    """Seconds by part of a job, from its making on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def done(self, part: str) -> None:
        """The time since the last call was this part's, but for what `each` has counted meanwhile."""
        now = time.monotonic()
        self.seconds[part] = now - self._since
        self._since = now

    def each(self, part: str, items: Iterable[Any]) -> Iterator[Any]:
        """The items; the time that they take to come is this part's."""
        self.seconds[part] = 0.0
        iterator = iter(items)
        while True:
            started = time.monotonic()
            item = next(iterator, None)
            passed = time.monotonic() - started
            self.seconds[part] += passed
            self._since += passed
            if item is None:
                return
            yield item


class Reactions:
    """Notices an engine that answers a probe as before although its weights have changed.

    The same weights and the same probe, alone in its batch, give the same bits on the CPU, so equal bits after a change
    are suspicious: the weights did not arrive where the engine computes. Or the change was too small for the probe, or in
    weights that the probe does not use. `exaggerated` tells these apart: an engine that takes weights in reacts to it.
    Weights with equal checksums (a step that changed nothing) raise no suspicion. Where equal weights do not give equal
    bits, nothing is noticed and nothing is suspected.
    """

    def __init__(self) -> None:
        self._checksums: dict[str, int] = {}
        self._probe: tuple[int, ...] = ()
        self._answer = np.zeros(0, dtype=np.float32)

    def ignored(self, weights: FlatWeights, probe: Sequence[int], answer: np.ndarray) -> list[str]:
        """The tensors that changed since the last `remember`, when the answer to the same probe did not."""
        if tuple(probe) != self._probe or not np.array_equal(answer, self._answer, equal_nan=True):
            return []
        return [entry.name for entry in weights.manifest if self._checksums.get(entry.name) != entry.checksum]

    def remember(self, weights: FlatWeights, probe: Sequence[int], answer: np.ndarray) -> None:
        self._checksums = {entry.name: entry.checksum for entry in weights.manifest}
        self._probe, self._answer = tuple(probe), answer


def exaggerated(weights: FlatWeights, names: Sequence[str]) -> FlatWeights:
    """The weights with the named tensors reversed and negated: a change that no probe overlooks."""
    chosen = set(names)
    return FlatWeights.pack([(name, _turned(t) if name in chosen else t) for name, t in weights.tensors()])


def _turned(tensor: torch.Tensor) -> torch.Tensor:
    turned = tensor.reshape(-1).flip(0).reshape(tensor.shape)
    return -turned if tensor.is_floating_point() else turned
