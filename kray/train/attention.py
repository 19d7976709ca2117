"""Attention over packed tokens: no token of the batch is padding, and a prompt stands there once for all its rollouts.

A packed micro-batch is one sequence of T tokens made of segments that lie one after the other: a prompt, or a response
that continues one. A segment's tokens see the whole prompt that it continues, and the earlier tokens of the segment. All
layers but attention work token by token and need not know; attention gathers each segment's keys by index.

transformers looks functions up by name: importing this module registers ATTENTION. Without a layout it is the usual one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "kray_packed"
BUCKET_TOKENS = 128  # an extra call of the kernel costs about as much as so many padded tokens
BUCKET_PAIRS = 2**25  # query-key pairs of one call at most, unless a single segment has more
MAX_BOUNDS = 64  # lengths between which bucket boundaries are looked for


@dataclass(slots=True)
class Bucket:
    """B segments of like lengths. queries (B, Q), keys (B, K) int64: places in the packed batch, padded with 0 on the
    right; offset (B,) int64: tokens of the prompt before the first query, all 0 where `causal`.
    """

    queries: Tensor
    keys: Tensor
    offset: Tensor
    causal: bool  # Q = K and plain causal attention hides all padding from all that counts
    masks: dict[int, Tensor] = field(default_factory=dict)  # made when first needed: ragged kernels need none

    def visible(self, window: int | None) -> Tensor:
        """(B, Q, K) bool: keys at most `window` - 1 tokens back, or any earlier; padded queries see something."""
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
        return Bucket(self.queries.to(device), self.keys.to(device), self.offset.to(device), self.causal)


@dataclass(slots=True)
class Layout:
    """Which tokens see which. source (T,) int64: where in the buckets' outputs, one after the other, a token's stands.

    For kernels that take ragged lengths: key_index (sum of K,), query_ends and key_ends (S + 1,) int32, the longest.
    padding (2,): tokens that the buckets' keys hold, and places that they take.
    """

    buckets: list[Bucket]
    source: Tensor
    key_index: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest: tuple[int, int]
    padding: tuple[int, int]

    def to(self, device: torch.device) -> Layout:
        if device.type == "cpu":
            return self
        buckets = [bucket.to(device) for bucket in self.buckets]
        return Layout(
            buckets,
            self.source.to(device),
            self.key_index.to(device),
            self.query_ends.to(device),
            self.key_ends.to(device),
            self.longest,
            self.padding,
        )


def buckets_of(lengths: np.ndarray, overhead: int = BUCKET_TOKENS) -> list[np.ndarray]:
    """Indices of the rows of each bucket, shortest first: the split of the sorted lengths that costs least.

    lengths (R,) int. A bucket costs its rows times its longest, plus `overhead`: exact dynamic programming over the
    different lengths (of which only MAX_BOUNDS evenly spread ones are looked at when there are more).
    """
    if len(lengths) == 0:
        return []
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    ends = np.flatnonzero(np.diff(ordered, append=ordered[-1] + 1)) + 1  # after the last row of each length
    if len(ends) > MAX_BOUNDS:
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, MAX_BOUNDS).astype(int))]
    best, start_of = [0.0], [0]
    for stop, end in enumerate(ends, start=1):
        begins = np.concatenate([[0], ends[: stop - 1]])
        costs = np.array(best) + (end - begins) * ordered[end - 1] + overhead
        start_of.append(int(costs.argmin()))
        best.append(float(costs.min()))
    found, stop = [], len(ends)
    while stop:
        begin = 0 if start_of[stop] == 0 else ends[start_of[stop] - 1]
        found.append(order[begin : ends[stop - 1]])
        stop = start_of[stop]
    return found[::-1]


def layout(segments: Sequence[tuple[int, int, int, int]], tokens: int) -> Layout:
    """segments: (start, length, start of the prompt that it continues, that prompt's length), the last two 0 for none.

    Every one of the `tokens` tokens is in exactly one segment; lengths are at least 1.
    """
    table = np.array(segments, dtype=np.int64).reshape(-1, 4)
    begin, size, prefix, prefix_size = table.T
    total = prefix_size + size
    buckets, source, used, end = [], np.zeros(tokens, dtype=np.int64), 0, 0
    for chosen in (np.flatnonzero(prefix_size == 0), np.flatnonzero(prefix_size)):
        for group in buckets_of(total[chosen]):
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
    return Layout(
        buckets,
        source=torch.from_numpy(source),
        key_index=torch.from_numpy(flat),
        query_ends=ends[0],
        key_ends=ends[1],
        longest=(int(size.max(initial=0)), int(total.max(initial=0))),
        padding=(int(total.sum()), max(1, used)),
    )


def _bucket(begin: np.ndarray, size: np.ndarray, prefix: np.ndarray, prefix_size: np.ndarray) -> Bucket:
    total = prefix_size + size
    q, k = np.arange(size.max()), np.arange(total.max())
    queries = np.where(q < size[:, None], begin[:, None] + q, 0)
    of_prefix = k < prefix_size[:, None]
    keys = np.where(of_prefix, prefix[:, None] + k, begin[:, None] + k - prefix_size[:, None])
    keys = np.where(k < total[:, None], keys, 0)
    offset = torch.from_numpy(prefix_size)
    return Bucket(torch.from_numpy(queries), torch.from_numpy(keys), offset, causal=not prefix_size.any())


def _attend(
    bucket: Bucket, query_TF: Tensor, kv_TF: Tensor, heads: tuple[int, int, int, int], scaling: float, limits: Any
) -> Tensor:
    """Outputs of one bucket, (B * Q, H * Dv). heads: (key heads, queries for each, D, Dv); limits: (window, softcap)."""
    kv_heads, shared, d, dv = heads
    window, softcap = limits
    b, q = bucket.queries.shape
    k = bucket.keys.shape[1]
    # The query heads that share a key head become further rows of it: keys and values need not be repeated.
    query = functional.embedding(bucket.queries, query_TF).view(b, q, kv_heads, shared, d).permute(0, 2, 3, 1, 4)
    kv = functional.embedding(bucket.keys, kv_TF)
    key = kv[..., : kv_heads * d].view(b, k, kv_heads, d).transpose(1, 2)
    value = kv[..., kv_heads * d :].view(b, k, kv_heads, dv).transpose(1, 2)
    narrow = window is not None and k > window
    if softcap is None and bucket.causal and not narrow and shared == 1:
        out = functional.scaled_dot_product_attention(query[:, :, 0], key, value, is_causal=True, scale=scaling)
        return out.transpose(1, 2).reshape(b * q, kv_heads * dv)
    visible = bucket.visible(window)
    mask = visible[:, None, None].expand(b, 1, shared, q, k).reshape(b, 1, shared * q, k)
    query = query.reshape(b, kv_heads, shared * q, d)
    if softcap is None:
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    else:  # Gemma 2
        scores = torch.tanh(query @ key.transpose(2, 3) * (scaling / softcap)) * softcap
        out = _softmax(scores.masked_fill(~mask, -math.inf)) @ value
    return out.view(b, kv_heads, shared, q, dv).permute(0, 3, 1, 2, 4).reshape(b * q, kv_heads * shared * dv)


def _ragged(query: Tensor, key: Tensor, value: Tensor, plan: Layout, scaling: float, window: int | None) -> Tensor:
    """The same through flash attention's ragged kernel: (T, H, D) of each to (T, H, D). CUDA, 16 bits."""
    from torch.nn.attention.varlen import varlen_attn

    sides = (-1 if window is None else window - 1, 0)
    ends = (plan.query_ends, plan.key_ends, *plan.longest)
    key, value = (part.flatten(1)[plan.key_index].view(-1, *part.shape[1:]) for part in (key, value))
    out = varlen_attn(query, key, value, *ends, scale=scaling, window_size=sides, enable_gqa=True)
    return out if isinstance(out, Tensor) else out[0]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: query (1, H, T, D), key and value (1, H', T, D); returns (1, T, H, D). No dropout."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layout is None:
        if softcap is not None:
            return _soft(query, key, value, attention_mask, scaling, softcap), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, 0.0, scaling, **options)
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    tokens, heads, d = query.shape
    kv_heads, dv = value.shape[1:]
    ragged = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and softcap is None and d == dv <= 256
    if ragged:
        return _ragged(query, key, value, layout, scaling, sliding_window)[None], None
    query_TF, kv_TF = query.reshape(tokens, -1), torch.cat([key.reshape(tokens, -1), value.reshape(tokens, -1)], 1)
    sizes, limits = (kv_heads, heads // kv_heads, d, dv), (sliding_window, softcap)
    parts = [_attend(bucket, query_TF, kv_TF, sizes, scaling, limits) for bucket in layout.buckets]
    return functional.embedding(layout.source, torch.cat(parts)).view(1, tokens, heads, dv), None


def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension, computed in at least float32."""
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


def _soft(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float) -> Tensor:
    """Attention with capped scores (Gemma 2), which SDPA does not know; (B, T, H, D)."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = torch.tanh(query @ key.transpose(2, 3) * (scaling / softcap)) * softcap
    if mask is None:
        q, k = scores.shape[-2:]
        mask = torch.ones(q, k, dtype=torch.bool, device=scores.device).tril(k - q)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return (_softmax(scores) @ value).transpose(1, 2)


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
