"""Group-relative advantages: how much better a rollout is than the other rollouts of its prompt.

Guarantee: a group whose rewards are all equal gets exactly 0, decided by equality and not by a threshold on the standard
deviation, so that the planner, this module and the micro-batches agree on which groups carry a gradient.

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


def advantages(rewards_R: Tensor, group_R: Tensor, scale: bool) -> Tensor:
    """Compute the group-relative advantage of each rollout.

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
    if rewards_R.ndim != 1 or rewards_R.shape != group_R.shape:
        raise ValueError(f"rewards_R {tuple(rewards_R.shape)} and group_R {tuple(group_R.shape)} must both be (R,)")
    rewards_R = rewards_R.to(torch.float64)
    bad = (~rewards_R.isfinite()).nonzero().flatten()
    if len(bad):
        raise ValueError(f"rewards_R[{int(bad[0])}] is {float(rewards_R[bad[0]])}: every reward must be finite")
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
