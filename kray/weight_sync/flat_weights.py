"""Weights in transit: the tensors' bytes, which the learner writes once and every engine reads without copies.

- What was packed is unpacked unchanged: names, shapes, dtypes and every bit, in the same order.
- Every tensor carries a checksum of its bytes. `verified` yields no tensor whose bytes differ from those that were packed.

In a package of its own because both the learner and the engines use it. Imports torch.
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

# 64-bit lanes of a checksum; so few that sums over them stay in the processor's first caches.
LANES = 8192


class Entry(NamedTuple):
    """Description of one tensor.

    Attributes:
        name: Name of the parameter.
        shape: Shape of the tensor.
        dtype: torch's name of the dtype without its prefix, such as "bfloat16".
        checksum: `checksum` of its bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    checksum: int


class Gathered(NamedTuple):
    """What the learner reports about weights that it hands over.

    Attributes:
        nbytes: Size of the weights in bytes.
        checksum: `FlatWeights.checksum` of the weights.
        gather_s: Seconds spent on gathering the tensors.
        checksum_s: Seconds spent on checksums.
    """

    nbytes: int
    checksum: str
    gather_s: float
    checksum_s: float


@dataclass(slots=True)
class FlatWeights:
    """Tensors as bytes.

    Ray copies the parts one after the other into one object of its store, and readers get views of that object.

    Attributes:
        manifest: One entry for each part.
        parts: Bytes of each tensor, (nbytes,) uint8. Empty, like the manifest, on ranks that keep no weights.
    """

    manifest: list[Entry]
    parts: list[np.ndarray]

    @staticmethod
    def pack(state: list[tuple[str, Tensor]]) -> FlatWeights:
        """Pack CPU tensors.

        The result shares the memory of contiguous tensors: do not change them before it has been sent.

        Args:
            state: (name, tensor) pairs in the order in which engines load them.
        """
        manifest, parts = [], []
        for name, tensor in state:
            part = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            dtype = str(tensor.dtype).removeprefix("torch.")
            manifest.append(Entry(name, tuple(tensor.shape), dtype, checksum(part)))
            parts.append(part)
        return FlatWeights(manifest, parts)

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(part.nbytes for part in self.parts)

    @property
    def checksum(self) -> str:
        """16 hexadecimal digits of the manifest: equal for equal names, shapes, dtypes and bytes."""
        lines = (f"{name}\x1f{shape}\x1f{dtype}\x1f{value:08x}\x1e" for name, shape, dtype, value in self.manifest)
        return hashlib.blake2b("".join(lines).encode(), digest_size=8).hexdigest()

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Unpack without verifying anything; the tensors share the parts' memory and are read-only."""
        return [(entry.name, _tensor(entry, part)) for entry, part in zip(self.manifest, self.parts, strict=True)]

    def require_complete(self) -> None:
        """Raise KrayError where a part is missing."""
        if len(self.parts) != len(self.manifest):
            raise KrayError(f"weights: {len(self.parts)} of {len(self.manifest)} tensors arrived")

    def verified(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what `tensors` returns, each tensor after its checksum was verified.

        Raises:
            KrayError: A part is missing, or the bytes of the named tensor are not those that were packed.
        """
        self.require_complete()
        for entry, part in zip(self.manifest, self.parts, strict=True):
            found = checksum(part)
            if found != entry.checksum:
                raise KrayError(
                    f"weights: {entry.name} arrived with checksum {found:08x}, it was sent with {entry.checksum:08x}"
                )
            yield entry.name, _tensor(entry, part)


def _tensor(entry: Entry, part: np.ndarray) -> Tensor:
    dtype: torch.dtype = getattr(torch, entry.dtype)
    if not part.nbytes:
        return torch.empty(entry.shape, dtype=dtype)
    with warnings.catch_warnings():
        # The tensors are meant to be read-only.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(part, dtype=dtype).reshape(entry.shape)


def checksum(part: np.ndarray) -> int:
    """Compute a 32-bit checksum about as fast as memory can be read.

    The bytes are read as 64-bit words, word i in row i // LANES and lane i % LANES. For each lane its sum and the sum of its
    partial sums are computed modulo 2^64 (Fletcher, "An arithmetic checksum for serial transmissions", 1982); the result is
    the CRC-32 of the length and of both sums of all lanes. A change within one word changes the sum of its lane, a moved
    word changes the partial sums: either goes unnoticed once in 2^32, except for several changes within one lane (a multiple
    of 64 KiB apart) that cancel out in both sums.

    Args:
        part: (nbytes,) contiguous uint8.
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
