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

from kray.errors import ConfigError

ATTENTION = "kray_packed"
# What models hand on to their attention that does not change what it computes.
HARMLESS = frozenset(
    {
        "cache_position",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
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
class PackedLayout:
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

    def to(self, device: torch.device) -> PackedLayout:
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
            self.padding,
        )


def length_buckets(lengths: np.ndarray, overhead: int = BUCKET_TOKENS) -> list[np.ndarray]:
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


def layout(segments: Sequence[tuple[int, int, int, int]], tokens: int) -> PackedLayout:
    """segments: (start, length, start of the prompt that it continues, that prompt's length), the last two 0 for none.

    Every one of the `tokens` tokens is in exactly one segment; lengths are at least 1.
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


@dataclass(slots=True)
class Scores:
    """How scores are made of queries and keys. window: keys that a query sees, itself included; sinks (H,): a score for
    each head that takes part in the softmax and has no value.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def fused(self) -> bool:
        """Whether torch's fused kernels compute these scores."""
        return self.softcap is None and self.sinks is None


def _attend(
    bucket: Bucket, query_TF: Tensor, kv_TF: Tensor, heads: tuple[int, int, int, int], scores: Scores
) -> Tensor:
    """Outputs of one bucket, (B * Q, H * Dv). heads: (key heads, queries for each, D, Dv)."""
    kv_heads, shared, d, dv = heads
    b, q = bucket.queries.shape
    k = bucket.keys.shape[1]
    # The query heads that share a key head become further rows of it: keys and values need not be repeated.
    query = functional.embedding(bucket.queries, query_TF).view(b, q, kv_heads, shared, d).permute(0, 2, 3, 1, 4)
    kv = functional.embedding(bucket.keys, kv_TF)
    key = kv[..., : kv_heads * d].view(b, k, kv_heads, d).transpose(1, 2)
    value = kv[..., kv_heads * d :].view(b, k, kv_heads, dv).transpose(1, 2)
    narrow = scores.window is not None and k > scores.window
    if scores.fused and bucket.causal and not narrow and shared == 1:
        out = functional.scaled_dot_product_attention(query[:, :, 0], key, value, is_causal=True, scale=scores.scaling)
        return out.transpose(1, 2).reshape(b * q, kv_heads * dv)
    visible = bucket.visible(scores.window)
    mask = visible[:, None, None].expand(b, 1, shared, q, k).reshape(b, 1, shared * q, k)
    query = query.reshape(b, kv_heads, shared * q, d)
    if scores.fused:
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scores.scaling)
    else:
        sinks = scores.sinks
        if sinks is not None:
            sinks = sinks.view(1, kv_heads, shared, 1).expand(b, -1, -1, q).reshape(b, kv_heads, shared * q, 1)
        out = _softmax(_scores(query, key, scores).masked_fill(~mask, -math.inf), sinks) @ value
    return out.view(b, kv_heads, shared, q, dv).permute(0, 3, 1, 2, 4).reshape(b * q, kv_heads * shared * dv)


def _ragged(
    query: Tensor, key: Tensor, value: Tensor, plan: PackedLayout, scaling: float, window: int | None
) -> Tensor:
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
    layout: PackedLayout | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: query (1, H, T, D), key and value (1, H', T, D); returns (1, T, H, D). No dropout.

    s_aux (H,): attention sinks, see Scores. Without a layout (B, H, T, D) of each, and attention_mask counts.

    Raises:
        ConfigError: An option that could change the attention and is not known here, or not known of packed tokens.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scaling, sliding_window, softcap, s_aux)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unknown = [name for name, given in options.items() if given is not None and name not in HARMLESS]
    if position_bias is not None and (layout is not None or not scores.fused):
        unknown.append("position_bias")
    if not causal and (layout is not None or (attention_mask is None and not scores.fused)):
        unknown.append("is_causal")
    if unknown:
        kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
        what = "packed attention" if layout is not None else "attention"
        raise ConfigError(
            f"model.path: a model of type {kind} calls {what} with the option {unknown[0]}, unknown to kray"
        )
    if layout is None:
        if not scores.fused:
            return _soft(query, key, value, attention_mask, scores), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, 0.0, scaling, is_causal, position_bias)
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    tokens, heads, d = query.shape
    kv_heads, dv = value.shape[1:]
    ragged = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and scores.fused and d == dv <= 256
    if ragged:
        return _ragged(query, key, value, layout, scaling, sliding_window)[None], None
    query_TF, kv_TF = query.reshape(tokens, -1), torch.cat([key.reshape(tokens, -1), value.reshape(tokens, -1)], 1)
    sizes = (kv_heads, heads // kv_heads, d, dv)
    parts = [_attend(bucket, query_TF, kv_TF, sizes, scores) for bucket in layout.buckets]
    return functional.embedding(layout.source, torch.cat(parts)).view(1, tokens, heads, dv), None


def _scores(query: Tensor, key: Tensor, scores: Scores) -> Tensor:
    """(B, H, Q, K) of query (B, H, Q, D) and key (B, H, K, D), before the mask."""
    if scores.softcap is None:
        return query @ key.transpose(2, 3) * scores.scaling
    return torch.tanh(query @ key.transpose(2, 3) * (scores.scaling / scores.softcap)) * scores.softcap  # Gemma 2


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Over the last dimension, computed in at least float32; sinks, if any, have one more score for each row."""
    exact = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        return scores.softmax(-1, dtype=exact).to(scores.dtype)
    return torch.cat([scores, sinks.to(scores.dtype)], -1).softmax(-1, dtype=exact)[..., :-1].to(scores.dtype)


def _soft(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scores: Scores) -> Tensor:
    """Attention with scores that SDPA does not know; (B, T, H, D). Without a mask it is causal."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    found = _scores(query, key, scores)
    if mask is None:
        q, k = found.shape[-2:]
        mask = torch.ones(q, k, dtype=torch.bool, device=found.device).tril(k - q)
    found = found.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else found + mask
    sinks = None if scores.sinks is None else scores.sinks.view(1, -1, 1, 1).expand(*found.shape[:3], 1)
    return (_softmax(found, sinks) @ value).transpose(1, 2)


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
