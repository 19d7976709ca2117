"""Context parallelism: several ranks compute one packed micro-batch, each a part of its tokens.

Layers work token by token, but for attention. There an all-to-all exchange gives each rank all tokens for its share of the
heads, and another one gives back its own tokens for all heads (DeepSpeed-Ulysses, arXiv 2309.14509). The backward pass
exchanges gradients in the same way, so each rank has the part of the gradient that comes from its own tokens.

Guarantees
- Ranks n * size to (n + 1) * size - 1 compute together. Parts are equal and contiguous; the last tokens may be padding.
- Every rank gets the log-probabilities of all targets, equal bit for bit, and passes gradients to its own alone.
- Exchanges end at the deadline of their process group.

Shape suffixes: T tokens of the micro-batch, P tokens of a part, C ranks, H heads, D and Dv sizes of a head's query and value,
F features, N targets of the micro-batch, M of this rank's part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from kray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ContextRanks:
    """The ranks that compute a micro-batch together.

    Attributes:
        size: Number of ranks (train.context_parallel).
        rank: This rank's number among them, by which parts of tokens and heads are given.
        group: Their process group; None for a single rank.
    """

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None

    def part(self, tokens: int) -> int:
        """Return the number of tokens of each part, padding included."""
        return -(-tokens // self.size)


def context_ranks(size: int, timeout_s: float) -> ContextRanks:
    """Divide all ranks into neighbours that compute together. A collective.

    Args:
        size: Number of ranks that compute together; divides that of all ranks.
        timeout_s: Limit in seconds for each exchange.
    """
    if size == 1:
        return ContextRanks()
    group, _ = dist.new_subgroups(size, timeout=timedelta(seconds=timeout_s))
    return ContextRanks(size, dist.get_rank() % size, group)


class _Exchange(torch.autograd.Function):
    """All-to-all of (C, ...): slice c of the input goes to rank c, slice c of the result comes from it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchanged(tensor, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _exchanged(gradients[0], ctx.group), None


def _exchanged(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    tensor = tensor.contiguous()
    result = torch.empty_like(tensor)
    dist.all_to_all_single(result, tensor, group=group)
    return result


def all_tokens(
    query: Tensor, key: Tensor, value: Tensor, tokens: int, ranks: ContextRanks
) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange this rank's tokens of all heads for all tokens of this rank's heads. A collective of the context ranks.

    Args:
        query: (P, H, D).
        key: (P, H', D), H' a divisor of H; heads are repeated where the ranks cannot divide them.
        value: (P, H', Dv).
        tokens: T, without padding.
        ranks: The context ranks.

    Returns:
        Query (T, H / C, D), key and value of as many heads as these queries need.

    Raises:
        ConfigError: The ranks cannot divide the heads.
    """
    heads, key_heads = query.shape[1], key.shape[1]
    if heads % ranks.size:
        raise ConfigError(f"train.context_parallel {ranks.size} does not divide {heads} attention heads")
    repeats = ranks.size // math.gcd(key_heads, ranks.size)
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    by_rank = [part.unflatten(1, (ranks.size, -1)).transpose(0, 1).flatten(2) for part in (query, key, value)]
    received = _Exchange.apply(torch.cat(by_rank, 2), ranks.group).flatten(0, 1)[:tokens]
    parts = received.split([part.shape[2] for part in by_rank], 1)
    query, key, value = (
        part.unflatten(1, (-1, each.shape[2])) for part, each in zip(parts, (query, key, value), strict=True)
    )
    return query, key, value


def own_tokens(output: Tensor, ranks: ContextRanks) -> Tensor:
    """Exchange all tokens of this rank's heads, (T, H / C, Dv), for its tokens of all heads, (P, H, Dv). A collective."""
    tokens, _, size = output.shape
    part = ranks.part(tokens)
    padded = functional.pad(output.flatten(1), (0, 0, 0, part * ranks.size - tokens))
    received = _Exchange.apply(padded.unflatten(0, (ranks.size, part)), ranks.group)
    return received.unflatten(2, (-1, size)).transpose(0, 1).flatten(1, 2)


@dataclass(frozen=True, slots=True)
class TargetParts:
    """Which of a micro-batch's N targets each context rank computes, one part after the other.

    Attributes:
        ranks: The context ranks.
        counts: Number of targets of each part.
    """

    ranks: ContextRanks
    counts: tuple[int, ...]

    def gather(self, logprobs_M: Tensor, entropy_M: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies of all targets, (N,) each; gradients reach logprobs_M. A collective."""
        own = functional.pad(torch.stack([logprobs_M.detach(), entropy_M]), (0, max(self.counts) - len(logprobs_M)))
        parts = [torch.empty_like(own) for _ in self.counts]
        # No rank has a target in a micro-batch without rows.
        if own.numel():
            dist.all_gather(parts, own, group=self.ranks.group)
        logprobs = [part[0, :count] for part, count in zip(parts, self.counts, strict=True)]
        logprobs[self.ranks.rank] = logprobs_M
        return torch.cat(logprobs), torch.cat([part[1, :count] for part, count in zip(parts, self.counts, strict=True)])
