"""How a policy's weights travel: the tensors' bytes, which the learner writes once and every engine reads without copies.

- What was packed comes out again: names, shapes, dtypes and every bit, in the same order.
- Every tensor carries a checksum of its bytes. Who reads the weights through `verified` gets no tensor whose bytes are not
  those that were packed.

Kept at the bottom of the house since both the learner and the engines speak it. Imports torch.
"""

from __future__ import annotations

import hashlib
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kray.errors import KrayError

LANES = 8192  # of a checksum, 64 bits each: sums over them stay in the processor's first caches


class Entry(NamedTuple):
    """One tensor. dtype: torch's name without its prefix. checksum: of its bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    checksum: int


class Gathered(NamedTuple):
    """What the learner says of weights that it hands over; checksum as in FlatWeights, seconds of its own work."""

    nbytes: int
    checksum: str
    gather_s: float
    checksum_s: float


@dataclass(slots=True)
class FlatWeights:
    """manifest: an Entry for each of `parts`, which are the tensors' bytes, 1-d uint8. Empty on ranks that keep nothing.

    Ray copies the parts one after the other into one object of its store, and readers get views of that object.
    """

    manifest: list[Entry]
    parts: list[np.ndarray]

    @staticmethod
    def pack(state: list[tuple[str, Tensor]]) -> FlatWeights:
        """Of CPU tensors. Shares the memory of those that are contiguous: do not change them before it has travelled."""
        manifest, parts = [], []
        for name, tensor in state:
            part = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            kind = str(tensor.dtype).removeprefix("torch.")
            manifest.append(Entry(name, tuple(tensor.shape), kind, checksum(part)))
            parts.append(part)
        return FlatWeights(manifest, parts)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def checksum(self) -> str:
        """16 hex digits of the manifest: equal for equal names, shapes, dtypes and bytes."""
        lines = (f"{name}\x1f{shape}\x1f{kind}\x1f{value:08x}\x1e" for name, shape, kind, value in self.manifest)
        return hashlib.blake2b("".join(lines).encode(), digest_size=8).hexdigest()

    def tensors(self) -> list[tuple[str, Tensor]]:
        """The inverse of `pack`. The tensors share the parts' memory: read-only. Verifies nothing."""
        return [(entry.name, _tensor(entry, part)) for entry, part in zip(self.manifest, self.parts, strict=True)]

    def verified(self) -> Iterator[tuple[str, Tensor]]:
        """`tensors`, each checked when its turn comes. Raises KrayError that names one with other bytes than were packed."""
        if len(self.parts) != len(self.manifest):
            raise KrayError(f"weights: {len(self.parts)} of {len(self.manifest)} tensors have come")
        for entry, part in zip(self.manifest, self.parts, strict=True):
            found = checksum(part)
            if found != entry.checksum:
                raise KrayError(
                    f"weights: {entry.name} has come with checksum {found:08x}, it was sent with {entry.checksum:08x}"
                )
            yield entry.name, _tensor(entry, part)


def _tensor(entry: Entry, part: np.ndarray) -> Tensor:
    kind: torch.dtype = getattr(torch, entry.dtype)
    if not part.nbytes:
        return torch.empty(entry.shape, dtype=kind)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nor shall it be written to
        return torch.frombuffer(part, dtype=kind).reshape(entry.shape)


def checksum(part: np.ndarray) -> int:
    """32 bits of contiguous bytes (1-d uint8), about as fast as memory is read.

    The bytes are words of 64 bits, word i in row i // LANES and lane i % LANES. Of each lane the sum and the sum of its
    partial sums (Fletcher's checksum, modulo 2^64) are taken; CRC-32 of the length and of all lanes is the result. Any
    change within a word changes its lane, a move changes the partial sums: it goes unnoticed once in 2^32, but for
    several changes in one lane, a multiple of 64 KiB apart, that cancel out in both sums.
    """
    whole = len(part) // 8
    rows, rest = divmod(whole, LANES)
    words = part[: whole * 8].view(np.int64)
    lanes = LANES if rows else rest + 1
    total, partial = np.zeros(lanes, dtype=np.int64), np.zeros(lanes, dtype=np.int64)
    for row in words[: rows * LANES].reshape(rows, LANES):
        total += row
        partial += total
    total[:rest] += words[rows * LANES :]
    last = np.zeros(8, dtype=np.uint8)
    last[: len(part) - whole * 8] = part[whole * 8 :]
    total[rest] += last.view(np.int64)[0]
    partial += total
    return zlib.crc32(partial.data, zlib.crc32(total.data, zlib.crc32(len(part).to_bytes(8, "little"))))
