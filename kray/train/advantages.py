"""Advantages: how much better a rollout is than what its reward is compared with (train.baseline).

group: the other rollouts of its prompt. Guarantee: a group whose rewards are all equal gets exactly 0, decided by equality
and not by a threshold on the standard deviation, so that the planner, this module and the micro-batches agree on which groups
carry a gradient.

belief: what was believed of the prompt before the step, corrected by the group's other rollouts. Every rollout carries a
gradient, also one alone or in a group whose rewards are all equal.

batch: all rollouts of the step.

Shape suffixes: R rollouts, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Added to the standard deviation, in units of reward: small against the smallest one that 0/1 rewards can have in a group
# of N (about 1 / sqrt(N)), yet it bounds the advantages of nearly equal real-valued rewards.
EPSILON = 1e-6
# Relative difference up to which a reward equals its group's mean: float64 rounding of the mean.
ROUNDING = 1e-14


def group_advantages(rewards_R: Tensor, group_R: Tensor, scale: bool) -> Tensor:
    """Compute the advantage of each rollout over its group.

    Args:
        rewards_R: (R,) float rewards.
        group_R: (R,) int64 group of each rollout: any ids in any order, groups of any size.
        scale: Whether advantages are (r - mean) / (std + EPSILON) with the group's population standard deviation (GRPO,
            arXiv 2402.03300, section 4.1.2); else r - mean (Dr. GRPO, arXiv 2503.20783, section 3.2).

    Returns:
        (R,) float32; exactly 0 in groups whose rewards are all equal.

    Raises:
        ValueError: A reward is not finite, or the shapes differ.
    """
    rewards_R = _checked(rewards_R, group_R)
    if len(rewards_R) == 0:
        return torch.zeros(0, dtype=torch.float32)
    _, group_R, size_G = torch.unique(group_R, return_inverse=True, return_counts=True)
    mean_G = torch.zeros(len(size_G), dtype=torch.float64).index_add(0, group_R, rewards_R) / size_G
    centred_R = rewards_R - mean_G[group_R]
    # Such a rollout has no gradient and need not be computed.
    average_R = centred_R.abs() <= ROUNDING * rewards_R.abs()
    low_G = torch.full_like(mean_G, torch.inf).scatter_reduce(0, group_R, rewards_R, "amin")
    high_G = torch.full_like(mean_G, -torch.inf).scatter_reduce(0, group_R, rewards_R, "amax")
    if scale:
        std_G = (torch.zeros_like(mean_G).index_add(0, group_R, centred_R**2) / size_G).sqrt()
        centred_R = centred_R / (std_G[group_R] + EPSILON)
    return torch.where((low_G == high_G)[group_R] | average_R, 0.0, centred_R).to(torch.float32)


def belief_advantages(rewards_R: Tensor, group_R: Tensor, belief_G2: Tensor, scale: bool, floor: float = 0.1) -> Tensor:
    """Compute the advantage of each rollout over what was believed of its prompt and what its group's others got.

    With a and b the belief's alpha and beta, k = a + b, and S the sum of the group's N rewards, the baseline of rollout j is
        (a + S - r_j) / (k + N - 1),
    the posterior mean of the success rate given all rewards but its own. It does not depend on r_j, so the gradient of r - b
    has no bias; its variance is pq / N (1 + 1 / (k + N - 1)) at success rate p = 1 - q. k = 0 is leave-one-out (RLOO, arXiv
    2402.14740, section 3.2).

    Args:
        rewards_R: (R,) float rewards, cut to [0, 1], as beliefs count them.
        group_R: (R,) int64 group of each rollout, 0 <= group < G.
        belief_G2: (G, 2) alpha and beta of each group's prompt before these rewards; 0 and 0 where nothing is known.
        scale: Whether to divide by max(sqrt(m (1 - m)), floor), m = (a + S) / (k + N): the standard deviation of a reward
            that is 0 or 1, and the largest one that a graded reward of this mean can have.
        floor: Smallest standard deviation to divide by.

    Returns:
        (R,) float32; 0 for a single rollout of which nothing is known.

    Raises:
        ValueError: A reward is not finite, or the shapes differ.
    """
    rewards_R = _checked(rewards_R, group_R).clamp(0.0, 1.0)
    alpha_G, beta_G = belief_G2.to(torch.float64).unbind(1)
    strength_G = alpha_G + beta_G
    size_G = torch.bincount(group_R, minlength=len(belief_G2)).to(torch.float64)
    sum_G = torch.zeros_like(size_G).index_add(0, group_R, rewards_R)
    others_R = (strength_G + size_G - 1)[group_R]
    baseline_R = ((alpha_G + sum_G)[group_R] - rewards_R) / others_R
    advantage_R = torch.where(others_R > 0, rewards_R - baseline_R, 0.0)
    if scale:
        mean_G = (alpha_G + sum_G) / (strength_G + size_G)
        advantage_R = advantage_R / (mean_G * (1 - mean_G)).clamp(min=0).sqrt().clamp(min=max(floor, EPSILON))[group_R]
    return advantage_R.to(torch.float32)


def batch_advantages(rewards_R: Tensor, scale: bool, floor: float = 0.1) -> Tensor:
    """Compute the advantage of each rollout over the mean of all rollouts: REINFORCE with one baseline.

    Args:
        rewards_R: (R,) float rewards.
        scale: Whether to divide by max(standard deviation of all rewards, floor).
        floor: Smallest standard deviation to divide by.

    Returns:
        (R,) float32; exactly 0 where all rewards are equal.

    Raises:
        ValueError: A reward is not finite.
    """
    rewards_R = _checked(rewards_R, rewards_R)
    if len(rewards_R) == 0 or bool((rewards_R == rewards_R[0]).all()):
        return torch.zeros(len(rewards_R), dtype=torch.float32)
    centred_R = rewards_R - rewards_R.mean()
    if scale:
        centred_R = centred_R / max(float(rewards_R.std(correction=0)), floor, EPSILON)
    return centred_R.to(torch.float32)


def _checked(rewards_R: Tensor, group_R: Tensor) -> Tensor:
    """Return the rewards in float64."""
    if rewards_R.ndim != 1 or rewards_R.shape != group_R.shape:
        raise ValueError(f"rewards_R {tuple(rewards_R.shape)} and group_R {tuple(group_R.shape)} must both be (R,)")
    rewards_R = rewards_R.to(torch.float64)
    bad = (~rewards_R.isfinite()).nonzero().flatten()
    if len(bad):
        raise ValueError(f"rewards_R[{int(bad[0])}] is {float(rewards_R[bad[0]])}: every reward must be finite")
    return rewards_R
