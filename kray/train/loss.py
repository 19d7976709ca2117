"""Policy-gradient losses over the sampled tokens of whole rollouts.

Guarantees: every loss is a sum, never a mean. The weights already contain the step's one global denominator, so any split
of the rollouts over micro-batches and ranks adds up to the same loss and the same gradient. A call has all tokens of its
rollouts.

GRPO, Dr. GRPO and DAPO differ in the advantages (advantages.py) and in the token weights (training_rows.py); their
objective is PPO's clip. GSPO and CISPO have objectives of their own.

Shape suffixes: N sampled tokens of one micro-batch, R rollouts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kray.config.train_schema import TrainConfig


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Which loss is computed, from the `train` section of a run's config.

    Attributes:
        objective: A key of OBJECTIVES.
        clip_low: Lower clip bound: ratios are clipped at 1 - clip_low.
        clip_high: Upper clip bound: ratios are clipped at 1 + clip_high.
        tis_cap: Cap of the truncated importance weight between engine and learner; 0 turns the correction off.
        kl_coefficient: Coefficient of the KL penalty towards the reference policy; 0 turns it off.
    """

    objective: str
    clip_low: float
    clip_high: float
    tis_cap: float = 0.0
    kl_coefficient: float = 0.0

    @classmethod
    def from_train(cls, train: TrainConfig) -> LossConfig:
        """Return the loss that a run's `train` section asks for."""
        return cls(train.loss, train.clip_low, train.clip_high, train.tis or 0.0, train.kl)


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Per-token inputs of the loss; only `logprobs_N` carries a gradient.

    Attributes:
        logprobs_N: (N,) log-probabilities of the policy being trained, nats.
        old_N: (N,) log-probabilities of the policy before the step, nats.
        engine_N: (N,) log-probabilities recorded by the engine that sampled, nats.
        advantages_N: (N,) advantage of the token's rollout.
        weights_N: (N,) loss weight, global denominator included.
        rollout_N: (N,) int64 index of the token's rollout within this call.
        reference_N: (N,) log-probabilities of the reference policy, nats; None without a KL penalty.
    """

    logprobs_N: Tensor
    old_N: Tensor
    engine_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    rollout_N: Tensor
    reference_N: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossResult:
    """Sums over the N tokens of one call, each a scalar tensor.

    Attributes:
        loss: The weighted loss; the only attribute that carries a gradient.
        clipped: Number of tokens at which the clip was active.
        kl: k3 estimate of KL(old || new), nats.
        truncated: Number of tokens whose importance weight was cut at `tis_cap`.
        reference_kl: k3 estimate of KL(new || reference), nats; 0 without a penalty.
    """

    loss: Tensor
    clipped: Tensor
    kl: Tensor
    truncated: Tensor
    reference_kl: Tensor


def k3(logprobs_N: Tensor, sampled_N: Tensor) -> Tensor:
    """Estimate KL(sampled || other) from tokens drawn from `sampled`.

    The estimate is exp(d) - 1 - d with d = logprobs_N - sampled_N: unbiased, of low variance (k3 in Schulman,
    "Approximating KL divergence", 2020). With the policy as sampled_N and the reference as logprobs_N it is GRPO's
    penalty (arXiv 2402.03300, equation 4).

    Args:
        logprobs_N: (N,) log-probabilities under the other distribution, nats.
        sampled_N: (N,) log-probabilities under the sampling distribution, nats.

    Returns:
        (N,) nats, each at least 0.
    """
    difference_N = logprobs_N - sampled_N
    return torch.expm1(difference_N) - difference_N


def clipped_ratio(
    log_ratio_N: Tensor, advantages_N: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Compute PPO's clipped objective, min(r A, clip(r, 1 - low, 1 + high) A).

    PPO: arXiv 1707.06347, equation 7; as in GRPO (2402.03300, equation 3) and Dr. GRPO (2503.20783, section 3), with the
    two bounds of DAPO (2503.14476, equation 8).

    Args:
        log_ratio_N: (N,) log of the probability ratio r.
        advantages_N: (N,) advantages A.
        clip_low: Lower clip bound.
        clip_high: Upper clip bound.

    Returns:
        The objective (N,) and whether the clip is active (N,) bool.
    """
    ratio_N = torch.exp(log_ratio_N)
    free_N = ratio_N * advantages_N
    bounded_N = ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N
    return torch.minimum(free_N, bounded_N), bounded_N < free_N


def _token_clip(inputs: LossInputs, config: LossConfig) -> tuple[Tensor, Tensor]:
    """PPO's clip of each token's ratio: GRPO, Dr. GRPO, DAPO."""
    return clipped_ratio(inputs.logprobs_N - inputs.old_N, inputs.advantages_N, config.clip_low, config.clip_high)


def _sequence_clip(inputs: LossInputs, config: LossConfig) -> tuple[Tensor, Tensor]:
    """GSPO (arXiv 2507.18071, equations 5 to 7): the clip of s_i = exp(mean over the rollout's tokens of log r_t).

    Every token of a rollout carries the rollout's objective, so that with sequence_mean weights the sum is equation 5.
    """
    rollout_N = inputs.rollout_N
    rollouts = int(rollout_N.max()) + 1 if len(rollout_N) else 0
    log_ratio_N = inputs.logprobs_N - inputs.old_N
    length_R = log_ratio_N.new_zeros(rollouts).index_add(0, rollout_N, torch.ones_like(inputs.old_N))
    mean_R = log_ratio_N.new_zeros(rollouts).index_add(0, rollout_N, log_ratio_N) / length_R.clamp(min=1)
    return clipped_ratio(mean_R[rollout_N], inputs.advantages_N, config.clip_low, config.clip_high)


def _weighted_logprobs(inputs: LossInputs, config: LossConfig) -> tuple[Tensor, Tensor]:
    """CISPO (MiniMax-M1, arXiv 2506.13585, equations 4 and 5): sg(clip(r_t, 1 - low, 1 + high)) A_t log pi_t.

    No token loses its gradient; only its weight is bounded.
    """
    ratio_N = torch.exp(inputs.logprobs_N.detach() - inputs.old_N)
    bounded_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    return bounded_N * inputs.advantages_N * inputs.logprobs_N, bounded_N != ratio_N


OBJECTIVES: dict[str, Callable[[LossInputs, LossConfig], tuple[Tensor, Tensor]]] = {
    "grpo": _token_clip,
    "dr_grpo": _token_clip,
    "dapo": _token_clip,
    "gspo": _sequence_clip,
    "cispo": _weighted_logprobs,
}


def policy_loss(inputs: LossInputs, config: LossConfig) -> LossResult:
    """Compute - sum_t w_t c_t objective_t + kl_coefficient sum_t w_t k3_t.

    c_t = min(exp(old_t - engine_t), tis_cap), without a gradient, corrects for an engine whose log-probabilities differ
    slightly from the learner's (Yao et al., "Your efficient RL framework secretly brings you off-policy RL training",
    2025, equation 4; V-trace's rho, arXiv 1802.01561, section 4.1). The KL penalty is GRPO's (arXiv 2402.03300,
    equations 3 and 4).

    Args:
        inputs: Per-token tensors; N may be 0.
        config: The objective and its coefficients.

    Returns:
        Sums over the tokens; gradients flow into `inputs.logprobs_N` only.
    """
    objective_N, clipped_N = OBJECTIVES[config.objective](inputs, config)
    zero = torch.zeros((), device=inputs.logprobs_N.device)
    truncated = reference_kl = zero
    if config.tis_cap > 0:
        importance_N = torch.exp(inputs.old_N - inputs.engine_N)
        truncated = (importance_N > config.tis_cap).sum()
        objective_N = objective_N * importance_N.clamp(max=config.tis_cap)
    loss = -(inputs.weights_N * objective_N).sum()
    if config.kl_coefficient > 0 and inputs.reference_N is not None:
        penalty_N = k3(inputs.reference_N, inputs.logprobs_N)
        loss = loss + config.kl_coefficient * (inputs.weights_N * penalty_N).sum()
        reference_kl = penalty_N.detach().sum()
    with torch.no_grad():
        kl = k3(inputs.logprobs_N, inputs.old_N).sum()
    return LossResult(loss, clipped_N.sum(), kl, truncated, reference_kl)
