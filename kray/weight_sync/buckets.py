"""Weights in buckets: parts of a few hundred MiB, so that nobody on the way holds the whole model.

- The division depends on shapes and dtypes alone, so that every rank of the learner makes the same one.
- A bucket holds whole tensors: one that is larger than a bucket has a bucket of its own.
- Every bucket carries names, shapes, dtypes and checksums of its tensors; the manifests of all buckets together are those of
  the same weights in one piece (`FlatWeights`).

Imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kray.errors import KrayError
from kray.weight_sync.flat_weights import Entry, FlatWeights, checksum

# Bytes to which the tensors of a bucket are aligned: a cache line.
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
        """Number of buckets."""
        return len(self.bounds) - 1


def plan_buckets(sizes: Sequence[int], bucket_bytes: int) -> BucketPlan:
    """Divide tensors, in their order, into buckets.

    Args:
        sizes: Size of each tensor in bytes.
        bucket_bytes: Most bytes of a bucket of several tensors.
    """
    bounds, used, capacity = [0], 0, 0
    for i, size in enumerate(map(_padded, sizes)):
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
        return sum(_padded(_nbytes(entry)) for entry in self.entries)

    @property
    def tensor_bytes(self) -> int:
        """Size of the tensors in bytes, without gaps."""
        return sum(_nbytes(entry) for entry in self.entries)

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


def fill(payload: np.ndarray, tensors: Iterable[tuple[str, Tensor]]) -> tuple[Entry, ...]:
    """Copy tensors, from any device, into a bucket and return their entries.

    Args:
        payload: (capacity,) writable uint8.
        tensors: (name, tensor) pairs that fit.
    """
    entries, start = [], 0
    target = torch.from_numpy(payload)
    for name, tensor in tensors:
        part = target[start : start + tensor.nbytes]
        if tensor.nbytes:
            part.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
        value = checksum(payload[start : start + tensor.nbytes])
        entries.append(Entry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), value))
        start += _padded(tensor.nbytes)
    return tuple(entries)


def unpack(header: Header, payload: np.ndarray) -> FlatWeights:
    """Return a bucket's tensors; they share the memory of `payload`, which may have more bytes than they."""
    parts, start = [], 0
    for entry in header.entries:
        parts.append(payload[start : start + _nbytes(entry)])
        start += _padded(_nbytes(entry))
    return FlatWeights(list(header.entries), parts)


def cut(state: Sequence[tuple[str, Tensor]], bucket_bytes: int) -> Iterator[tuple[Header, np.ndarray]]:
    """Yield the buckets of tensors that are all at hand, each with bytes of its own."""
    plan = plan_buckets([tensor.nbytes for _, tensor in state], bucket_bytes)
    for i in range(plan.count):
        chosen = state[plan.bounds[i] : plan.bounds[i + 1]]
        payload = np.empty(sum(_padded(tensor.nbytes) for _, tensor in chosen), dtype=np.uint8)
        yield Header(i, plan.count, fill(payload, chosen)), payload


def joined(buckets: Iterable[FlatWeights]) -> FlatWeights:
    """Return the weights of all buckets as one; nothing is copied."""
    found = list(buckets)
    manifest = [entry for bucket in found for entry in bucket.manifest]
    return FlatWeights(manifest, [part for bucket in found for part in bucket.parts])


def _nbytes(entry: Entry) -> int:
    dtype: torch.dtype = getattr(torch, entry.dtype)
    return int(np.prod(entry.shape, dtype=np.int64)) * dtype.itemsize


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
