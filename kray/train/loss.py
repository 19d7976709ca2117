"""The policy-gradient losses, over the tokens of whole rollouts.

Promises: everything is a sum, never a mean. Weights already hold the step's one global denominator, so any split of the
rollouts over micro-batches and ranks adds up to the same loss and the same gradient; a rollout is never split.

What is called GRPO, Dr.GRPO and DAPO differs in the advantage (advantages.py) and in the token weights (batches.py), not
in the objective, which is PPO's clip for all three; GSPO and CISPO have objectives of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """Sums over the T tokens of one call, each a scalar tensor; only `loss` carries a gradient."""

    loss: Tensor
    clipped: Tensor  # tokens where the clip was active
    kl: Tensor  # k3 estimate of KL(old || new), nats
    truncated: Tensor  # tokens whose importance weight was cut at tis
    reference_kl: Tensor  # k3 estimate of KL(new || reference), nats


def k3(logprobs_T: Tensor, sampled_T: Tensor) -> Tensor:
    """Estimates KL(sampled || other) from tokens drawn from `sampled`, (T,) nats, each >= 0.

    exp(d) - 1 - d with d = logprobs_T - sampled_T: unbiased and low in variance (k3 in Schulman, "Approximating KL
    divergence", 2020). With sampled_T the policy and logprobs_T the reference it is GRPO's penalty (arXiv 2402.03300,
    equation 4).
    """
    difference_T = logprobs_T - sampled_T
    return torch.expm1(difference_T) - difference_T


def clipped_ratio(log_ratio_T: Tensor, advantages_T: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Objective and whether the clip is active, (T,) each: min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t).

    PPO's clip (arXiv 1707.06347, equation 7), as in GRPO (2402.03300, equation 3) and Dr.GRPO (2503.20783, section 3),
    with the two bounds of DAPO (2503.14476, equation 8).
    """
    ratio_T = torch.exp(log_ratio_T)
    free_T = ratio_T * advantages_T
    bounded_T = ratio_T.clamp(1 - low, 1 + high) * advantages_T
    return torch.minimum(free_T, bounded_T), bounded_T < free_T


def _clipped(
    logprobs_T: Tensor, old_T: Tensor, advantages_T: Tensor, rollout_T: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    return clipped_ratio(logprobs_T - old_T, advantages_T, low, high)


def _sequence(
    logprobs_T: Tensor, old_T: Tensor, advantages_T: Tensor, rollout_T: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """GSPO (arXiv 2507.18071, equations 5 to 7): the clip of s_i = exp(mean over the rollout's tokens of log r_t).

    Every token of a rollout carries the rollout's objective, so that with sequence_mean weights the sum is equation 5.
    """
    rollouts = int(rollout_T.max()) + 1 if len(rollout_T) else 0
    log_ratio_T = logprobs_T - old_T
    length_R = old_T.new_zeros(rollouts).index_add(0, rollout_T, torch.ones_like(old_T))
    mean_R = log_ratio_T.new_zeros(rollouts).index_add(0, rollout_T, log_ratio_T) / length_R.clamp(min=1)
    return clipped_ratio(mean_R[rollout_T], advantages_T, low, high)


def _weighted(
    logprobs_T: Tensor, old_T: Tensor, advantages_T: Tensor, rollout_T: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """CISPO (MiniMax-M1, arXiv 2506.13585, equations 4 and 5): sg(clip(r_t, 1 - low, 1 + high)) A_t log pi_t.

    No token loses its gradient; only its weight is bounded.
    """
    ratio_T = torch.exp(logprobs_T.detach() - old_T)
    bounded_T = ratio_T.clamp(1 - low, 1 + high)
    return bounded_T * advantages_T * logprobs_T, bounded_T != ratio_T


OBJECTIVES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "grpo": _clipped,
    "dr_grpo": _clipped,
    "dapo": _clipped,
    "gspo": _sequence,
    "cispo": _weighted,
}


def policy_loss(
    kind: str,
    logprobs_T: Tensor,
    old_T: Tensor,
    engine_T: Tensor,
    advantages_T: Tensor,
    weights_T: Tensor,
    rollout_T: Tensor,
    clip: tuple[float, float],
    tis: float = 0.0,
    kl: float = 0.0,
    reference_T: Tensor | None = None,
) -> TokenLoss:
    """- sum_t w_t c_t objective_t + kl sum_t w_t k3_t; gradients flow into logprobs_T only.

    All tensors (T,) float, T >= 0, log-probabilities in nats: of the policy that learns, of the one before the step
    (old), of the engine that sampled; rollout_T (T,) int64: which rollout of this call a token belongs to. kind: a key of
    OBJECTIVES. clip: (low, high). tis: the cap of the truncated importance weight c_t = min(exp(old - engine), tis),
    without a gradient, that corrects for an engine which computes a little otherwise (Yao et al., "Your efficient RL
    framework secretly brings you off-policy RL training", 2025, equation 4; V-trace's rho, arXiv 1802.01561, section
    4.1); 0: off. kl: coefficient of the penalty towards reference_T (GRPO, arXiv 2402.03300, equations 3 and 4).
    """
    old_T = old_T.detach()
    objective_T, clipped_T = OBJECTIVES[kind](logprobs_T, old_T, advantages_T, rollout_T, *clip)
    none = torch.zeros((), device=logprobs_T.device)
    truncated = reference_kl = none
    if tis > 0:
        importance_T = torch.exp(old_T - engine_T)
        truncated = (importance_T > tis).sum()
        objective_T = objective_T * importance_T.clamp(max=tis)
    loss = -(weights_T * objective_T).sum()
    if kl > 0 and reference_T is not None:
        penalty_T = k3(reference_T, logprobs_T)
        loss = loss + kl * (weights_T * penalty_T).sum()
        reference_kl = penalty_T.detach().sum()
    with torch.no_grad():
        moved = k3(logprobs_T, old_T).sum()
    return TokenLoss(loss, clipped_T.sum(), moved, truncated, reference_kl)
