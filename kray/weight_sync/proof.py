"""How an engine proves that it computes with the weights that the learner sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kray.weight_sync.flat_weights import FlatWeights


@dataclass(frozen=True, slots=True)
class Proof:
    """An engine's reply to new weights.

    Attributes:
        logprobs: (P - 1,) float32 logprobs of the probe's tokens after the first.
        checksum: `FlatWeights.checksum` of the weights that it loaded.
        seconds: Seconds of each part: "verify" (in an engine of several processes "copy": to these, which verify while they
            load), "load", "probe" and, if the engine's sensitivity was verified, "sensitivity"; "wake" of an engine that slept,
            until it had memory for keys and values.
        start: (P - 1,) float32 logprobs of the same tokens with the weights of the model's folder, in the first reply of an
            engine that nothing had been loaded into; else None.
    """

    logprobs: np.ndarray
    checksum: str
    seconds: dict[str, float]
    start: np.ndarray | None = None


class ProbeHistory:
    """Detects an engine that scores a probe as before although its weights have changed.

    On the CPU the same weights and the same probe, alone in its batch, give the same bits. So equal bits after a change mean
    that the weights did not arrive where the engine computes, or that the change was too small for the probe, or in weights
    that the probe does not use. `perturbed` weights tell these cases apart: an engine that really loads weights reacts to
    them. Equal checksums (a step that changed nothing) are not reported. Where equal weights do not give equal bits, nothing
    is ever reported.
    """

    def __init__(self) -> None:
        self._checksums: dict[str, int] = {}
        self._probe: tuple[int, ...] = ()
        self._logprobs = np.zeros(0, dtype=np.float32)

    def changed_without_effect(self, weights: FlatWeights, probe: Sequence[int], logprobs: np.ndarray) -> list[str]:
        """Return the tensors that changed since the last `record` although the same probe got the same logprobs.

        Args:
            weights: The weights that were just loaded.
            probe: (P,) token ids.
            logprobs: (P - 1,) float32 logprobs computed with these weights.
        """
        if tuple(probe) != self._probe or not np.array_equal(logprobs, self._logprobs, equal_nan=True):
            return []
        return [entry.name for entry in weights.manifest if self._checksums.get(entry.name) != entry.checksum]

    def record(self, weights: FlatWeights, probe: Sequence[int], logprobs: np.ndarray) -> None:
        """Store what the next call of `changed_without_effect` is compared with."""
        self._checksums = {entry.name: entry.checksum for entry in weights.manifest}
        self._probe, self._logprobs = tuple(probe), logprobs


def perturbed(weights: FlatWeights, names: Sequence[str]) -> FlatWeights:
    """Return the weights with the named tensors reversed and negated, a change that shows in any probe."""
    chosen = set(names)
    state = weights.tensors()
    return FlatWeights.pack([(name, _perturbed(tensor) if name in chosen else tensor) for name, tensor in state])


def _perturbed(tensor: torch.Tensor) -> torch.Tensor:
    reversed_ = tensor.reshape(-1).flip(0).reshape(tensor.shape)
    return -reversed_ if tensor.is_floating_point() else reversed_
