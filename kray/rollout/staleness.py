"""How old the policy was that wrote a token, and what is too old to learn from. Pure.

A step is learned from by policy version v, the policy after v updates; a token that version u sampled is v - u versions
stale. No token over async.max_staleness reaches the learner: its whole group is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from kray.metrics import STALENESS_DROPPED_GROUPS, STALENESS_MAX, STALENESS_MEAN, STALENESS_MIXED_RATIO
from kray.records import Rollout, RolloutGroup


def stalest(rollout: Rollout, version: int) -> int:
    """Return the versions between the oldest token of a rollout and the policy that is to learn from it."""
    return max((version - sampled_by for sampled_by, _, _ in rollout.policy_versions), default=0)


def fresh(
    groups: Sequence[RolloutGroup], version: int, max_staleness: int
) -> tuple[list[RolloutGroup], dict[str, float]]:
    """Drop the groups that are too stale.

    Args:
        groups: All groups of a step.
        version: The policy that is to learn from them.
        max_staleness: Versions that a token may be older (async.max_staleness).

    Returns:
        The groups to learn from, and metrics.

    Raises:
        ValueError: A token was sampled by a version that does not exist yet.
    """
    kept = []
    for group in groups:
        ages = [stalest(rollout, version) for rollout in group.rollouts]
        if any(sampled_by > version for rollout in group.rollouts for sampled_by, _, _ in rollout.policy_versions):
            raise ValueError(f"prompt {group.prompt.id}: sampled by a policy later than version {version}")
        if max(ages, default=0) <= max_staleness:
            kept.append(group)
    spans = [(version - v, end - start) for g in kept for r in g.rollouts for v, start, end in r.policy_versions]
    tokens = sum(length for _, length in spans)
    metrics: dict[str, float] = {
        STALENESS_MEAN: sum(age * length for age, length in spans) / tokens if tokens else 0.0,
        STALENESS_MAX: float(max((age for age, _ in spans), default=0)),
        STALENESS_MIXED_RATIO: _share([len(r.policy_versions) > 1 for g in kept for r in g.rollouts]),
        STALENESS_DROPPED_GROUPS: float(len(groups) - len(kept)),
    }
    assert metrics[STALENESS_MAX] <= max_staleness
    return kept, metrics


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
