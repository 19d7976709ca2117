"""The clipped policy-gradient loss over single tokens, and the log-probabilities that it needs.

Promises: everything is a sum, never a mean. Weights already hold the step's one global denominator, so any split of the
tokens over micro-batches and ranks adds up to the same loss and the same gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**26  # logits that are held in float32 at once: 256 MiB


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """Sums over the T tokens of one call, each a scalar tensor; only `loss` carries a gradient."""

    loss: Tensor
    clipped: Tensor  # tokens where the clip was active, that is, whose gradient is zero
    kl: Tensor  # k3 estimate of KL(old || new), nats


def k3(logprobs_T: Tensor, sampled_T: Tensor) -> Tensor:
    """Estimates KL(sampled || other) from tokens drawn from `sampled`, (T,) nats, each >= 0.

    exp(d) - 1 - d with d = logprobs_T - sampled_T: unbiased and low in variance (k3 in Schulman, "Approximating KL
    divergence", 2020).
    """
    difference_T = logprobs_T - sampled_T
    return torch.expm1(difference_T) - difference_T


def policy_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    weights_T: Tensor,
    clip_low: float,
    clip_high: float,
) -> TokenLoss:
    """- sum_t w_t min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t), with r_t = exp(logprob_t - old_logprob_t).

    PPO's clip (arXiv 1707.06347, equation 7) with the two bounds of DAPO (arXiv 2503.14476, section 3.1).
    All tensors (T,) float32, T >= 0; gradients flow into logprobs_T only.
    """
    old_logprobs_T = old_logprobs_T.detach()
    ratio_T = torch.exp(logprobs_T - old_logprobs_T)
    free_T = ratio_T * advantages_T
    bounded_T = ratio_T.clamp(1 - clip_low, 1 + clip_high) * advantages_T
    with torch.no_grad():
        clipped = (bounded_T < free_T).sum()
        kl = k3(logprobs_T, old_logprobs_T).sum()
    return TokenLoss(loss=-(weights_T * torch.minimum(free_T, bounded_T)).sum(), clipped=clipped, kl=kl)


def _chunk(logits_TV: Tensor, targets_T: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits_TV = logits_TV.float() if temperature == 1 else logits_TV.float() / temperature
    norm_T = logits_TV.logsumexp(-1)
    logprobs_T = logits_TV.gather(-1, targets_T[:, None])[:, 0] - norm_T
    with torch.no_grad():
        probabilities_TV = torch.exp(logits_TV - norm_T[:, None])
        # A logit of -inf has probability 0 and adds nothing; 0 * inf would be NaN.
        entropy_T = norm_T - torch.where(probabilities_TV > 0, probabilities_TV * logits_TV, 0.0).sum(-1)
    return logprobs_T, entropy_T


def token_logprobs_and_entropy(
    logits_TV: Tensor, targets_T: Tensor, temperature: float = 1.0, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution, both (T,) float32, in nats.

    logits_TV (T, V) of any float dtype; targets_T (T,) int64; temperature divides the logits, as it does in the engine
    that sampled. The entropy carries no gradient. A float32 copy of at most `chunk_elements` logits is alive at once,
    also in the backward pass: chunks are computed again there.
    """
    rows = max(1, chunk_elements // max(1, logits_TV.shape[-1]))
    if len(logits_TV) <= rows:
        return _chunk(logits_TV, targets_T, temperature)
    parts = [
        checkpoint(_chunk, logits, targets, temperature, use_reentrant=False)
        for logits, targets in zip(logits_TV.split(rows), targets_T.split(rows), strict=True)
    ]
    return torch.cat([logprobs for logprobs, _ in parts]), torch.cat([entropy for _, entropy in parts])
