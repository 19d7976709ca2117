"""How a policy's weights travel: one flat buffer that the learner writes and every engine reads, without copies.

Kept at the bottom of the house since both the learner and the engines speak it. Imports torch.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64  # bytes


@dataclass(slots=True)
class FlatWeights:
    """manifest: (name, shape, dtype, byte offset) of each tensor in `buffer` (uint8). Empty on ranks that keep nothing."""

    manifest: list[tuple[str, tuple[int, ...], str, int]]
    buffer: np.ndarray

    @staticmethod
    def pack(state: list[tuple[str, Tensor]]) -> FlatWeights:
        """CPU tensors, one after the other; offsets are multiples of 64 bytes."""
        manifest = []
        end = 0
        for name, tensor in state:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            manifest.append((name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), start))
            end = start + tensor.nbytes
        buffer = np.zeros(end, dtype=np.uint8)
        for (_, tensor), (_, _, _, start) in zip(state, manifest, strict=True):
            buffer[start : start + tensor.nbytes] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        return FlatWeights(manifest, buffer)

    def tensors(self) -> list[tuple[str, Tensor]]:
        """The inverse of `pack`. The tensors share the buffer's memory: read-only."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nor shall it be written to
            flat = torch.frombuffer(self.buffer, dtype=torch.uint8) if len(self.buffer) else torch.zeros(0).byte()
        state = []
        for name, shape, dtype, start in self.manifest:
            kind: torch.dtype = getattr(torch, dtype)
            size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
            state.append((name, flat[start : start + size].view(kind).reshape(shape)))
        return state
