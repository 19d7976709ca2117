"""Which tokens of a packed micro-batch see which, and their segments grouped for kernels.

A packed micro-batch is one sequence of T tokens made of adjacent segments: a prompt, or a response that continues one. A
segment's tokens see the whole prompt that it continues and the earlier tokens of the segment.

Shape suffixes: T tokens, S segments. B, Q, K: rows, queries and keys of one bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kray.train.context_parallel import ContextRanks

# Padded tokens that cost about as much as one more call of the attention kernel.
BUCKET_TOKENS = 128
# Most query-key pairs of one kernel call, unless a single segment has more: bounds the mask's memory to 32 MiB.
BUCKET_PAIRS = 2**25
# Most lengths considered as bucket boundaries: bounds the time of the dynamic programme.
MAX_BOUNDS = 64


@dataclass(slots=True)
class Bucket:
    """B segments of similar lengths.

    Attributes:
        queries: (B, Q) int64 places in the packed batch, padded with 0 on the right.
        keys: (B, K) int64 places in the packed batch, padded with 0 on the right.
        offset: (B,) int64 tokens of the prompt before the first query; all 0 where `causal`.
        causal: Whether Q = K and plain causal attention hides all padding from every token that counts.
        masks: Masks by window, made when first needed.
    """

    queries: Tensor
    keys: Tensor
    offset: Tensor
    causal: bool
    masks: dict[int, Tensor] = field(default_factory=dict)

    def visible(self, window: int | None) -> Tensor:
        """Return which keys each query sees.

        Args:
            window: Number of most recent keys seen, the query's own included; None for all earlier ones.

        Returns:
            (B, Q, K) bool; padded queries also see something, so that no softmax is empty.
        """
        k = self.keys.shape[1]
        window = k if window is None else min(window, k)
        if window not in self.masks:
            places = torch.arange(k, device=self.keys.device)
            row = self.offset[:, None] + torch.arange(self.queries.shape[1], device=self.keys.device)
            seen = places <= row[..., None]
            if window < k:
                near = seen & (places > row[..., None] - window)
                seen = torch.where(near.any(-1, keepdim=True), near, seen)
            self.masks[window] = seen
        return self.masks[window]

    def to(self, device: torch.device) -> Bucket:
        """Return the bucket on a device."""
        return Bucket(self.queries.to(device), self.keys.to(device), self.offset.to(device), self.causal)


@dataclass(slots=True)
class PackedLayout:
    """Which tokens of a packed micro-batch see which.

    Attributes:
        buckets: Segments grouped by length, for kernels that need equal lengths.
        source: (T,) int64 index of each token's output in the concatenated outputs of the buckets.
        key_index: (sum of the segments' keys,) int64 places of the keys, segment after segment, for ragged kernels.
        query_ends: (S + 1,) int32 cumulative numbers of queries.
        key_ends: (S + 1,) int32 cumulative numbers of keys.
        longest: Most queries and most keys of a segment.
        key_counts: Keys of the buckets that hold a token, and all their places, padding included.
        ranks: The ranks over which the tokens are divided; None where each rank has all of them.
    """

    buckets: list[Bucket]
    source: Tensor
    key_index: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest: tuple[int, int]
    key_counts: tuple[int, int]
    ranks: ContextRanks | None = None

    def to(self, device: torch.device) -> PackedLayout:
        """Return the layout on a device."""
        if device.type == "cpu":
            return self
        buckets = [bucket.to(device) for bucket in self.buckets]
        return PackedLayout(
            buckets,
            self.source.to(device),
            self.key_index.to(device),
            self.query_ends.to(device),
            self.key_ends.to(device),
            self.longest,
            self.key_counts,
            self.ranks,
        )


def length_buckets(lengths: np.ndarray, overhead: int = BUCKET_TOKENS) -> list[np.ndarray]:
    """Split rows into buckets of similar lengths at the lowest cost.

    A bucket costs its rows times its longest length, plus `overhead`. The split is exact dynamic programming over the
    distinct lengths, or over MAX_BOUNDS evenly spread ones of them.

    Args:
        lengths: (R,) int.
        overhead: Cost of a bucket in tokens.

    Returns:
        Indices of the rows of each bucket, shortest first.
    """
    if len(lengths) == 0:
        return []
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    # After the last row of each length.
    ends = np.flatnonzero(np.diff(ordered, append=ordered[-1] + 1)) + 1
    if len(ends) > MAX_BOUNDS:
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, MAX_BOUNDS).astype(int))]
    best, start_of = [0.0], [0]
    for stop, end in enumerate(ends, start=1):
        begins = np.concatenate([[0], ends[: stop - 1]])
        costs = np.array(best) + (end - begins) * ordered[end - 1] + overhead
        start_of.append(int(costs.argmin()))
        best.append(float(costs.min()))
    buckets, stop = [], len(ends)
    while stop:
        begin = 0 if start_of[stop] == 0 else ends[start_of[stop] - 1]
        buckets.append(order[begin : ends[stop - 1]])
        stop = start_of[stop]
    return buckets[::-1]


def packed_layout(segments: Sequence[tuple[int, int, int, int]], tokens: int) -> PackedLayout:
    """Build the layout of a packed micro-batch.

    Args:
        segments: (start, length, start of the prompt that it continues, that prompt's length), the last two 0 for a
            prompt. Every token is in exactly one segment; lengths are at least 1.
        tokens: T.
    """
    table = np.array(segments, dtype=np.int64).reshape(-1, 4)
    begin, size, prefix, prefix_size = table.T
    total = prefix_size + size
    buckets, source, used, end = [], np.zeros(tokens, dtype=np.int64), 0, 0
    for chosen in (np.flatnonzero(prefix_size == 0), np.flatnonzero(prefix_size)):
        for group in length_buckets(total[chosen]):
            pairs = int(size[chosen[group]].max()) * int(total[chosen[group]].max())
            rows = max(1, BUCKET_PAIRS // pairs)
            for first in range(0, len(group), rows):
                picked = chosen[group[first : first + rows]]
                bucket = _bucket(begin[picked], size[picked], prefix[picked], prefix_size[picked])
                places = np.arange(bucket.queries.numel()).reshape(bucket.queries.shape) + end
                real = np.arange(places.shape[1]) < size[picked][:, None]
                source[bucket.queries.numpy()[real]] = places[real]
                used += bucket.keys.numel()
                end += bucket.queries.numel()
                buckets.append(bucket)
    spans = [np.r_[p : p + n, b : b + s] for b, s, p, n in table]
    flat = np.concatenate([np.zeros(0, dtype=np.int64), *spans])
    ends = [torch.from_numpy(np.concatenate([[0], np.cumsum(part)]).astype(np.int32)) for part in (size, total)]
    return PackedLayout(
        buckets,
        source=torch.from_numpy(source),
        key_index=torch.from_numpy(flat),
        query_ends=ends[0],
        key_ends=ends[1],
        longest=(int(size.max(initial=0)), int(total.max(initial=0))),
        key_counts=(int(total.sum()), max(1, used)),
    )


def _bucket(begin: np.ndarray, size: np.ndarray, prefix: np.ndarray, prefix_size: np.ndarray) -> Bucket:
    """Build a bucket of segments, each given by start, length, prompt start and prompt length, (B,) int64."""
    total = prefix_size + size
    q, k = np.arange(size.max()), np.arange(total.max())
    queries = np.where(q < size[:, None], begin[:, None] + q, 0)
    of_prefix = k < prefix_size[:, None]
    keys = np.where(of_prefix, prefix[:, None] + k, begin[:, None] + k - prefix_size[:, None])
    keys = np.where(k < total[:, None], keys, 0)
    offset = torch.from_numpy(prefix_size)
    return Bucket(torch.from_numpy(queries), torch.from_numpy(keys), offset, causal=not prefix_size.any())
