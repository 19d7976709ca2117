"""Weights in buckets: parts of a few hundred MiB, so that nobody on the way holds the whole model.

- The division depends on shapes and dtypes alone, so that every rank of the learner makes the same one.
- A bucket holds whole tensors: one that is larger than a bucket has a bucket of its own.
- Every bucket carries names, shapes, dtypes and checksums of its tensors; the manifests of all buckets together are those of
  the same weights in one piece (`FlatWeights`).
- Buckets are written to a file in memory, which has no name in any folder: it ends with its processes, however they end, and
  /dev/shm may be small. A bucket is small to pickle; iterating over it in another process of the machine yields the tensors.

Linux only. Imports torch.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kray.errors import KrayError
from kray.weight_sync.flat_weights import Entry, FlatWeights, checksum

# Tensors begin at multiples of this many bytes: a cache line.
ALIGNMENT = 64
MIB = 2**20


@dataclass(frozen=True, slots=True)
class BucketPlan:
    """How the weights are divided.

    Attributes:
        bounds: Bucket i holds the tensors bounds[i] up to bounds[i + 1], which is excluded.
        capacity: Size of the largest bucket in bytes.
    """

    bounds: tuple[int, ...]
    capacity: int

    @property
    def count(self) -> int:
        """Number of buckets, at least 1."""
        return len(self.bounds) - 1


def plan_buckets(sizes: Sequence[int], bucket_bytes: int) -> BucketPlan:
    """Divide tensors, in their order, into buckets.

    Args:
        sizes: Size of each tensor in bytes.
        bucket_bytes: Most bytes of a bucket of several tensors.
    """
    bounds, used, capacity = [0], 0, 0
    for i, size in enumerate(map(padded, sizes)):
        if used and used + size > bucket_bytes:
            bounds.append(i)
            used = 0
        used += size
        capacity = max(capacity, used)
    return BucketPlan((*bounds, len(sizes)), capacity)


@dataclass(frozen=True, slots=True)
class Header:
    """What a bucket says of itself.

    Attributes:
        index: Its number.
        count: Number of buckets.
        entries: Its tensors, in the order of their bytes.
    """

    index: int
    count: int
    entries: tuple[Entry, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes, with the gaps between them."""
        return sum(padded(nbytes_of(entry)) for entry in self.entries)

    def encode(self) -> bytes:
        """Return the header as JSON."""
        return json.dumps([self.index, self.count, self.entries], separators=(",", ":")).encode()

    @staticmethod
    def decode(text: bytes) -> Header:
        """Return the header that `encode` wrote.

        Raises:
            KrayError: It is not one.
        """
        try:
            index, count, entries = json.loads(text)
            found = tuple(Entry(str(n), tuple(map(int, shape)), str(d), int(c)) for n, shape, d, c in entries)
            return Header(int(index), int(count), found)
        except (ValueError, TypeError) as error:
            raise KrayError(f"weights: the header of a bucket cannot be read: {error}") from error


def fill(
    payload: np.ndarray, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None
) -> tuple[Entry, ...]:
    """Copy tensors, from any device, into a bucket and return their entries.

    Args:
        payload: (capacity,) writable uint8.
        tensors: (name, tensor) pairs that fit.
        dtype: What floating-point tensors are cast to on the way; None: nothing.
    """
    entries, start = [], 0
    for name, tensor in tensors:
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        part = payload[start : start + tensor.numel() * kind.itemsize]
        if part.nbytes:
            torch.from_numpy(part).view(kind).view(tensor.shape).copy_(tensor.detach())
        # At once, while the bytes are in the processor's caches.
        entries.append(Entry(name, tuple(tensor.shape), str(kind).removeprefix("torch."), checksum(part)))
        start += padded(part.nbytes)
    return tuple(entries)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Some of the tensors of a version, in a file in memory that another process may have made.

    Attributes:
        path: Of the file, for processes of the same user.
        inode: Tells the file from an earlier one of the same path.
        size: Of the file, in bytes.
        start: Where the first tensor begins.
        manifest: One entry for each tensor.
    """

    path: str
    inode: int
    size: int
    start: int
    manifest: list[Entry]

    def spans(self) -> list[tuple[int, int]]:
        """Return (offset in the file, length) of each tensor in bytes."""
        spans, offset = [], self.start
        for entry in self.manifest:
            length = nbytes_of(entry)
            spans.append((offset, length))
            offset += padded(length)
        return spans

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor); the tensors are read-only, and valid until the bucket's memory is written again.

        Raises:
            KrayError: The bytes of the named tensor are not those that were written.
        """
        memory = _mapped(self.path, self.inode, self.size)
        return FlatWeights(self.manifest, [memory[start : start + n] for start, n in self.spans()]).verified()

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor of this process lies in the bucket's file."""
        start = _mapped(self.path, self.inode, self.size).ctypes.data
        return tensor.device.type == "cpu" and start <= tensor.data_ptr() < start + self.size


# The bytes of the file that was mapped last, by its inode. Mapping it anew would touch each of its pages again, which takes
# longer than reading them. Several paths lead to one file.
_MAPPED: dict[int, np.ndarray] = {}


def _mapped(path: str, inode: int, size: int) -> np.ndarray:
    """Return the (size,) uint8 bytes of the file."""
    if inode not in _MAPPED:
        with open(path, "rb") as file:
            assert os.fstat(file.fileno()).st_ino == inode, f"{path} is another file by now"
            memory = np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), dtype=np.uint8)
        _MAPPED.clear()
        _MAPPED[inode] = memory
    return _MAPPED[inode]


def joined(buckets: Iterable[FlatWeights]) -> FlatWeights:
    """Return the weights of all buckets as one; nothing is copied."""
    found = list(buckets)
    manifest = [entry for bucket in found for entry in bucket.manifest]
    return FlatWeights(manifest, [part for bucket in found for part in bucket.parts])


def nbytes_of(entry: Entry) -> int:
    """Return the size of a tensor in bytes."""
    dtype: torch.dtype = getattr(torch, entry.dtype)
    return int(np.prod(entry.shape, dtype=np.int64)) * dtype.itemsize


def padded(nbytes: int) -> int:
    """Return the bytes that a tensor of so many takes in a bucket."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
