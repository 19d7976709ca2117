"""Attention over packed tokens: no token of the batch is padding, and a prompt occurs once for all its rollouts.

packed_layout.py says which tokens see which. All layers but attention work token by token and need not know; attention
gathers each segment's keys by index. Where context parallelism divides the tokens over ranks, attention has all of them, for a
share of the heads.

transformers looks attention functions up by name: importing this module registers ATTENTION. Without a packed layout it
computes ordinary attention.

Shape suffixes: T tokens, F features (heads times head size). B, Q, K: rows, queries and keys of one bucket;
H, D, Dv: heads, and sizes of a head's query and value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kray.errors import ConfigError
from kray.train.context_parallel import all_tokens, own_tokens
from kray.train.packed_layout import Bucket, PackedLayout

# Name under which transformers finds `packed_attention`.
ATTENTION = "kray_packed"
# Options that models pass to their attention and that do not change its result.
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


@dataclass(slots=True)
class Scores:
    """How attention scores are computed from queries and keys.

    Attributes:
        scaling: Factor of query times key.
        window: Number of keys that a query sees, its own included; None for all.
        softcap: c in c tanh(score / c); None for none (Gemma 2).
        sinks: (H,) one score a head that takes part in the softmax and has no value; None for none.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def fused(self) -> bool:
        """Whether torch's fused kernels can compute these scores."""
        return self.softcap is None and self.sinks is None


def _attend(
    bucket: Bucket, query_TF: Tensor, kv_TF: Tensor, heads: tuple[int, int, int, int], scores: Scores
) -> Tensor:
    """Compute one bucket's outputs, (B * Q, H * Dv); heads: (key heads, query heads a key head, D, Dv)."""
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
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float, window: int | None
) -> Tensor:
    """Compute all outputs, (T, H, D), by flash attention's ragged kernel; CUDA and 16-bit dtypes only."""
    from torch.nn.attention.varlen import varlen_attn

    sides = (-1 if window is None else window - 1, 0)
    ends = (layout.query_ends, layout.key_ends, *layout.longest)
    key, value = (part.flatten(1)[layout.key_index].view(-1, *part.shape[1:]) for part in (key, value))
    out = varlen_attn(query, key, value, *ends, scale=scaling, window_size=sides, enable_gqa=True)
    return out if isinstance(out, Tensor) else out[0]


def _check_options(
    module: nn.Module,
    options: dict[str, Any],
    causal: bool,
    layout: PackedLayout | None,
    mask: Tensor | None,
    scores: Scores,
) -> None:
    """Raise ConfigError for an option that could change the result and is not supported here."""
    fused_only = ("position_bias",) if layout is None and scores.fused else ()
    unknown = [name for name, given in options.items() if given is not None and name not in (*HARMLESS, *fused_only)]
    if not causal and (layout is not None or (mask is None and not scores.fused)):
        unknown.append("is_causal")
    if unknown:
        kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
        what = "packed attention" if layout is not None else "attention"
        raise ConfigError(
            f"model.path: a model of type {kind} calls {what} with the option {unknown[0]}, unknown to kray"
        )


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
    """Compute attention; transformers calls it with its own option names. Dropout is never applied.

    Args:
        module: The calling attention module.
        query: (1, H, T, D); (B, H, T, D) without a layout. With context parallelism T is this rank's part of the tokens.
        key: (1, H', T, D), H' a divisor of H.
        value: (1, H', T, Dv).
        attention_mask: Used only without a layout.
        dropout: Ignored.
        scaling: Factor of query times key; D ** -0.5 by default.
        sliding_window: Number of keys that a query sees, its own included.
        softcap: See Scores.
        layout: Layout of the packed tokens; None for ordinary attention.
        s_aux: (H,) attention sinks, see Scores.
        is_causal: Overrides the module's own.
        position_bias: Added to the scores; refused for packed tokens.
        **options: Other options of a model.

    Returns:
        (1, T, H, Dv) and None in place of the weights.

    Raises:
        ConfigError: An option could change the result and is not supported here, or not for packed tokens.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scaling, sliding_window, softcap, s_aux)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    _check_options(module, options | {"position_bias": position_bias}, causal, layout, attention_mask, scores)
    if layout is None:
        if not scores.fused:
            return _eager_attention(query, key, value, attention_mask, scores), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, 0.0, scaling, is_causal, position_bias)
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    if layout.ranks is None:
        return _packed(query, key, value, layout, scores)[None], None
    query, key, value = all_tokens(query, key, value, len(layout.source), layout.ranks)
    if scores.sinks is not None:
        scores.sinks = scores.sinks.unflatten(0, (layout.ranks.size, -1))[layout.ranks.rank]
    return own_tokens(_packed(query, key, value, layout, scores), layout.ranks)[None], None


def _packed(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scores: Scores) -> Tensor:
    """Compute the outputs (T, H, Dv) of query (T, H, D), key (T, H', D) and value (T, H', Dv)."""
    tokens, heads, d = query.shape
    kv_heads, dv = value.shape[1:]
    ragged = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and scores.fused and d == dv <= 256
    if ragged:
        return _ragged(query, key, value, layout, scores.scaling, scores.window)
    query_TF, kv_TF = query.reshape(tokens, -1), torch.cat([key.reshape(tokens, -1), value.reshape(tokens, -1)], 1)
    sizes = (kv_heads, heads // kv_heads, d, dv)
    parts = [_attend(bucket, query_TF, kv_TF, sizes, scores) for bucket in layout.buckets]
    return functional.embedding(layout.source, torch.cat(parts)).view(tokens, heads, dv)


def _scores(query: Tensor, key: Tensor, scores: Scores) -> Tensor:
    """Compute scores (B, H, Q, K) of query (B, H, Q, D) and key (B, H, K, D), before the mask."""
    if scores.softcap is None:
        return query @ key.transpose(2, 3) * scores.scaling
    return torch.tanh(query @ key.transpose(2, 3) * (scores.scaling / scores.softcap)) * scores.softcap


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Compute the softmax over the last dimension in at least float32; sinks add one more score to each row."""
    exact = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        return scores.softmax(-1, dtype=exact).to(scores.dtype)
    return torch.cat([scores, sinks.to(scores.dtype)], -1).softmax(-1, dtype=exact)[..., :-1].to(scores.dtype)


def _eager_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scores: Scores) -> Tensor:
    """Compute attention (B, T, H, Dv) with scores that SDPA does not support; causal without a mask."""
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
