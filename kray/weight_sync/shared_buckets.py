"""Weights handed to other processes of this machine: copied into memory that they share, one bucket at a time.

The next bucket takes the memory of the one before. A reader copies what it needs for longer, see `Bucket.holds`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from kray.weight_sync.buckets import Bucket, plan_buckets
from kray.weight_sync.flat_weights import FlatWeights


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
        plan = plan_buckets([part.nbytes for part in weights.parts], self._bucket_bytes)
        self._reserve(plan.capacity)
        path, inode = f"/proc/{os.getpid()}/fd/{self._file}", os.fstat(self._file).st_ino
        for first, last in pairwise(plan.bounds):
            bucket = Bucket(path, inode, len(self._memory), 0, weights.manifest[first:last])
            for (start, length), part in zip(bucket.spans(), weights.parts[first:last], strict=True):
                self._memory[start : start + length] = part
            yield bucket

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
