"""A collected step: the plan as it was carried out, its rollouts in groups, and what was lost."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kray.errors import KrayError
from kray.records import Allocation, RolloutGroup
from kray.rollout.outcome import Failure
from kray.text import one_line

logger = logging.getLogger(__name__)

# Data failures of a step that are logged one by one; the metric reward/failed counts them all.
LOGGED_FAILURES = 3


@dataclass(slots=True)
class CollectedStep:
    """What a step's plan was and what came back.

    Attributes:
        allocation: The plan as it was carried out, over the M prompts that got rollouts.
        groups: One for each prompt with at least one scored rollout, in the order of the prompts that were collected.
        failures: Rollouts that were lost, by prompt.
        generate_s: Seconds from the start to the arrival of the last rollout.
        reward_s: Seconds from then to the last reward.
        plan_s: Seconds that planning took before the first rollout.
        previous_status: (M,) int64 status of each prompt after its previous visit, see kray.planner.metrics.
        plan_metrics: Metrics of the plan, of waiting prompts and of the quarantine.
        others: Where roles beside the first one learn: one group for each prompt and such role. Rollouts are counted by
            `groups`.
    """

    allocation: Allocation
    groups: list[RolloutGroup]
    failures: list[Failure] = field(default_factory=list)
    generate_s: float = 0.0
    reward_s: float = 0.0
    plan_s: float = 0.0
    previous_status: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    plan_metrics: dict[str, float] = field(default_factory=dict)
    others: list[RolloutGroup] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Rollouts that were lost."""
        return sum(failure.rollouts for failure in self.failures)

    @property
    def rollouts(self) -> int:
        """Rollouts that were scored."""
        return sum(len(group.rollouts) for group in self.groups)

    @property
    def tokens(self) -> int:
        """Tokens that the policy sampled."""
        return sum(group.tokens for group in (*self.groups, *self.others))

    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what came back of each prompt of the plan.

        Returns:
            (successes, trials), (M,) each, in the order of the plan; graded rewards are summed.
        """
        none = np.zeros(0)
        by_id = {group.prompt.id: group.rewards for group in self.groups}
        rewards = [by_id.get(prompt_id, none) for prompt_id in self.allocation.prompt_ids]
        return np.array([float(r.sum()) for r in rewards]), np.array([len(r) for r in rewards])

    def results(self) -> tuple[list[str], dict[str, tuple[int, str]]]:
        """Return what the quarantine needs to know about prompts.

        There is nothing to learn from a prompt when every rollout failed, or scoring each took longer than its deadline.

        Returns:
            Ids of the prompts with something to learn from, sorted; and (tries, reason) of the others by id.
        """
        slow = [g.prompt.id for g in self.groups if all(r.reward_late for r in g.rollouts)]
        failed = {prompt_id: (1, "judging it takes longer than reward.timeout_s") for prompt_id in slow}
        usable = {group.prompt.id for group in self.groups} - set(slow)
        for failure in self.failures:
            if failure.prompt_id not in usable:
                tries, _ = failed.get(failure.prompt_id, (0, ""))
                failed[failure.prompt_id] = (max(tries, failure.tries), failure.why)
        return sorted(usable), failed


def check_failures(failures: Sequence[Failure], ordered: int, max_share: float) -> None:
    """Log the first data failures and refuse too many of them.

    Args:
        failures: Rollouts that were lost.
        ordered: Rollouts that were ordered.
        max_share: The share of them that may be lost (run.max_failed_share).

    Raises:
        KrayError: More were lost.
    """
    lost = sum(failure.rollouts for failure in failures)
    for failure in failures[:LOGGED_FAILURES]:
        logger.warning(
            f"data failure: prompt {one_line(failure.prompt_id)}: {failure.rollouts} rollouts: {failure.why}"
        )
    if lost > max_share * ordered:
        first = failures[0]
        raise KrayError(
            f"{lost} of {ordered} rollouts failed, run.max_failed_share is {max_share:g}; the first, of prompt "
            f"{one_line(first.prompt_id)}: {first.why}"
        )
