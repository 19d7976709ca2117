"""Weights handed to other processes of this machine: copied into a file in memory, one bucket at a time.

- A bucket is small to pickle; iterating over it in another process yields the tensors, each after its checksum was verified.
- The file has no name in any folder: it ends with its processes, however they end, and /dev/shm may be small.
- The next bucket takes the memory of the one before. A reader copies what it needs for longer, see `Bucket.holds`.

Linux only. Imports torch.
"""

from __future__ import annotations

import functools
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kray.weight_sync.flat_weights import Entry, FlatWeights

# Parts begin at multiples of this many bytes, so that tensors of any dtype are aligned.
ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Bucket:
    """Some of the tensors of a version, in the memory of another process.

    Attributes:
        path: Of the file, for processes of the same user.
        inode: Tells the file from an earlier one of the same path.
        size: Of the file, in bytes.
        manifest: One entry for each tensor.
        offsets: Where its bytes begin.
        lengths: How many they are.
    """

    path: str
    inode: int
    size: int
    manifest: list[Entry]
    offsets: list[int]
    lengths: list[int]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor); the tensors are read-only and valid until the next bucket.

        Raises:
            KrayError: The bytes of the named tensor are not those that were packed.
        """
        memory = _mapped(self.path, self.inode, self.size)
        places = zip(self.offsets, self.lengths, strict=True)
        return FlatWeights(self.manifest, [memory[start : start + length] for start, length in places]).verified()

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor of this process lies in the bucket's memory."""
        start = _mapped(self.path, self.inode, self.size).ctypes.data
        return tensor.device.type == "cpu" and start <= tensor.data_ptr() < start + self.size


@functools.lru_cache(maxsize=1)
def _mapped(path: str, inode: int, size: int) -> np.ndarray:
    """Return the (size,) uint8 bytes of the file; mapping it anew for each bucket would touch each of its pages again."""
    with open(path, "rb") as file:
        assert os.fstat(file.fileno()).st_ino == inode, f"{path} is another file by now"
        return np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), dtype=np.uint8)


class SharedBuckets:
    """The memory through which one process hands weights to others."""

    def __init__(self, bucket_bytes: int):
        """Create it empty; memory is taken with the first weights and kept.

        Args:
            bucket_bytes: Most bytes of a bucket, unless a single tensor is larger.
        """
        self._bucket_bytes = bucket_bytes
        self._file = -1
        self._memory = np.zeros(0, dtype=np.uint8)

    def fill(self, weights: FlatWeights) -> Iterator[Bucket]:
        """Copy weights bucket by bucket; each is valid until the next one is asked for.

        Raises:
            KrayError: A part is missing.
        """
        weights.require_complete()
        lengths = [part.nbytes for part in weights.parts]
        aligned = [_aligned(length) for length in lengths]
        capacity = max([*aligned, min(self._bucket_bytes, sum(aligned))])
        self._reserve(capacity)
        first = 0
        while first < len(lengths):
            offsets: list[int] = []
            end = 0
            for length in lengths[first:]:
                if offsets and end + _aligned(length) > capacity:
                    break
                offsets.append(end)
                end += _aligned(length)
            last = first + len(offsets)
            for start, part in zip(offsets, weights.parts[first:last], strict=True):
                self._memory[start : start + part.nbytes] = part
            yield self._bucket(weights.manifest[first:last], offsets, lengths[first:last])
            first = last

    def _bucket(self, manifest: list[Entry], offsets: list[int], lengths: list[int]) -> Bucket:
        path, inode = f"/proc/{os.getpid()}/fd/{self._file}", os.fstat(self._file).st_ino
        return Bucket(path, inode, len(self._memory), manifest, offsets, lengths)

    def _reserve(self, size: int) -> None:
        """Take a larger file where the present one is too small."""
        size = max(size, mmap.PAGESIZE)
        if size <= len(self._memory):
            return
        if self._file >= 0:
            os.close(self._file)
        self._file = os.memfd_create("kray-weights")
        os.ftruncate(self._file, size)
        self._memory = np.frombuffer(mmap.mmap(self._file, size), dtype=np.uint8)


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT
