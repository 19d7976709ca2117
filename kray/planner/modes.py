"""Rules of the modes: what a step allocates next, given the labels so far. One small class per kind of mode.

`allocate(rollouts)` returns [(row, rollouts)] of about that many rollouts and takes them out of the budget. An empty list means
nothing now; while nothing is in flight, it means nothing more in this step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from kray.planner.greedy import Greedy, RolloutBudget
from kray.planner.solver import spread

# pilot_commit's thresholds on the success rate of the pilot.
EASY, HARD = 0.9, 0.1


class Labels(Protocol):
    """State of a step that a rule may read; a StepPlan has it.

    Attributes:
        in_flight: rollouts dispatched without a label yet.
        mixed: groups with different labels so far.
    """

    in_flight: int
    mixed: int

    def success_rate(self) -> np.ndarray:
        """Return the success rate of this step's labels, (M,) float64."""
        ...

    def expected_mixed(self) -> float:
        """Return the mixed groups, and the expected number of those that rollouts in flight will mix."""
        ...


class Rule:
    """Allocates nothing after the beginning, and lost rollouts stay lost.

    For uniform, paper, paper_released, coba and weight_only where the budget counts rollouts.
    """

    def allocate(self, rollouts: int) -> list[tuple[int, int]]:
        """Allocate about so many more rollouts; return [(row, rollouts)]."""
        return []

    def on_labels(self, row: int, passed: float, failed: float) -> None:
        """React to labels of a prompt: their successes and failures."""

    def on_loss(self, row: int) -> None:
        """React to rollouts of a prompt that are lost for good, whose budget is free again where the mode reuses it."""

    def on_refund(self) -> None:
        """React to budget that has become free because rollouts took fewer tokens than expected."""

    def trained(self, drawn: np.ndarray, mixed: np.ndarray) -> np.ndarray:
        """Select the prompts whose groups are trained on.

        Args:
            drawn: (M,) bool, prompts with rollouts.
            mixed: (M,) bool, prompts with different labels.

        Returns:
            (M,) bool.
        """
        return drawn


class Even(Rule):
    """The same modes where the budget counts tokens: tokens that rollouts did not take go evenly to all prompts."""

    def __init__(self, budget: RolloutBudget):
        """Share the step's budget."""
        self._budget, self._cheapest, self._returned = budget, min(budget.cost, default=0.0), False

    def allocate(self, rollouts: int) -> list[tuple[int, int]]:
        """Spend what has come back since the last call."""
        if not self._returned or self._budget.free < self._cheapest:
            return []
        self._returned = False
        return spend(self._budget, [np.ones(len(self._budget.held), dtype=bool)])

    def on_refund(self) -> None:
        """Spend it at the next call."""
        self._returned = True


class Respend(Rule):
    """The static plan: budget that becomes free (rollouts are lost, or take fewer tokens) goes to the best prompts."""

    def __init__(self, make: Callable[[], Greedy]):
        """Take the function that makes the greedy allocation, called when it is first needed."""
        self._make = make
        self._greedy: Greedy | None = None

    def allocate(self, rollouts: int) -> list[tuple[int, int]]:
        """Spend what has become free."""
        return self._greedy.allocate(rollouts) if self._greedy else []

    def on_labels(self, row: int, passed: float, failed: float) -> None:
        """Update the prompt's marginal."""
        if self._greedy:
            self._greedy.marginal.observe(row, passed, failed)
            self._greedy.mark_changed(row)

    def on_loss(self, row: int) -> None:
        """Spend the prompt's budget on others at the next call."""
        if self._greedy is None:
            self._greedy = self._make()
        self._greedy.mark_changed(row)
        self._greedy.budget_returned()

    def on_refund(self) -> None:
        """Spend it at the next call."""
        if self._greedy is None:
            self._greedy = self._make()
        self._greedy.budget_returned()


class Online(Rule):
    """The best rollouts now, continuously."""

    def __init__(self, greedy: Greedy, step: Labels, target_groups: int = 0):
        """Make the rule.

        Args:
            greedy: allocates the step's budget.
            step: whose labels count.
            target_groups: nothing is allocated while so many groups are mixed or expected to be; 0: no such limit.
        """
        self.greedy, self._step, self._target = greedy, step, target_groups

    def allocate(self, rollouts: int) -> list[tuple[int, int]]:
        """Allocate about so many rollouts, best first."""
        if self._target and self._step.expected_mixed() >= self._target:
            return []
        return self.greedy.allocate(min(rollouts, self._target) if self._target else rollouts)

    def on_labels(self, row: int, passed: float, failed: float) -> None:
        """Update the prompt's marginal."""
        self.greedy.marginal.observe(row, passed, failed)
        self.greedy.mark_changed(row)

    def on_loss(self, row: int) -> None:
        """Spend the prompt's budget on others at the next call."""
        self.greedy.mark_changed(row)
        self.greedy.budget_returned()

    def on_refund(self) -> None:
        """Spend it at the next call."""
        self.greedy.budget_returned()


class Rounds(Online):
    """Equal parts of what the pilot left, each planned when all labels of the one before are back."""

    def __init__(self, greedy: Greedy, step: Labels, rounds: int):
        """Make the rule for so many rounds after the pilot."""
        super().__init__(greedy, step)
        self._left = rounds

    def allocate(self, rollouts: int) -> list[tuple[int, int]]:
        """Allocate the next round, whatever number is requested; nothing while rollouts are in flight."""
        if self._step.in_flight:
            return []
        budget = self.greedy.budget
        kept = budget.free * (1 - 1 / max(1, self._left))
        kept = float(int(kept)) if all(cost == 1 for cost in budget.cost[:1]) else kept
        budget.free -= kept
        chosen = self.greedy.allocate(2**62)
        budget.free += kept
        self.greedy.budget_returned()
        self._left -= 1
        if not chosen and self._left > 0:
            return self.allocate(rollouts)
        return chosen


class Waves(Rule):
    """DAPO's dynamic sampling, arXiv 2503.14476, equation 11.

    Prompts are opened in waves until enough groups are mixed, and only the first `kept` mixed groups are trained on: the
    others are in no denominator of the loss. Each wave is `groups` fresh candidates with `size` rollouts each, begun when the
    one before is fully labelled; every rollout counts as spent. The budget holds the first wave from the beginning, with all
    prompts that are due in it.

    Departures: a wave is one batch of prompts (theirs may be larger); candidates are plan.candidates times a batch, and a
    step in which they do not suffice trains on a smaller batch (theirs samples until the batch is full, or ends the run);
    graded labels make a group mixed when they differ (theirs filters by accuracy 0 and 1).

    Of the paper's other parts, train.loss dapo has the two clips (equation 10; they matter with train.updates > 1, the paper
    makes 16 updates a step), the loss by tokens (equation 12) and no KL. It has no overlong filtering and no soft overlong
    punishment (equation 13): a truncated response gets the reward of its verifier.
    """

    def __init__(self, budget: RolloutBudget, step: Labels, groups: int, size: int, kept: int):
        """Make the rule.

        Args:
            budget: the step's budget.
            step: whose labels count.
            groups: prompts of a wave, and mixed groups after which no further wave begins.
            size: rollouts of each prompt.
            kept: mixed groups that are trained on.
        """
        self._budget, self._step, self._groups, self._size, self._kept = budget, step, groups, size, kept
        self._fresh = [row for row, held in enumerate(budget.held) if not held]

    def allocate(self, rollouts: int) -> list[tuple[int, int]]:
        """Open the next wave, whatever number is requested, when the one before is labelled and too few groups are mixed."""
        budget = self._budget
        if self._step.in_flight or self._step.mixed >= self._groups:
            return []
        rows, self._fresh = self._fresh[: self._groups], self._fresh[self._groups :]
        for row in rows:
            budget.held[row] += self._size
            budget.free -= self._size * budget.cost[row]
        return [(row, self._size) for row in rows]

    def trained(self, drawn: np.ndarray, mixed: np.ndarray) -> np.ndarray:
        """Select the first mixed groups; all prompts with rollouts where no group is mixed."""
        kept = mixed & (np.cumsum(mixed) <= self._kept)
        return kept if kept.any() else drawn


class Commit(Rule):
    """Pilot-Commit, arXiv 2605.26606: after the pilot, the rest goes evenly to prompts of intermediate success.

    A prompt over 0.9 in its pilot is skipped, one under 0.1 deferred (the thresholds of the authors' code), and only the
    others are trained on, with the rollouts of their pilot, as in that code: a prompt that got nothing after its pilot is in
    no denominator of the loss, unless no prompt got anything.

    Departures: both come back at their next visit like any prompt, where theirs are evicted or queued; without intermediate
    prompts, or once they are full, the rest goes to hard ones and then to all, so that the budget is always spent; theirs
    generates pilots for more prompts than it commits to. Where the budget counts tokens, what comes back is spent in the same
    order.
    """

    def __init__(self, budget: RolloutBudget, step: Labels):
        """Share the step's budget and its labels."""
        self._budget, self._step = budget, step
        # (M,) masks of prompts, those that are served first in front
        self._order: list[np.ndarray] | None = None
        self._committed = np.zeros(len(budget.held), dtype=bool)

    def allocate(self, rollouts: int) -> list[tuple[int, int]]:
        """Spend all that is free, whatever number is requested, once every label is back."""
        if self._step.in_flight:
            return []
        if self._order is None:
            rate = self._step.success_rate()
            self._order = [(rate >= HARD) & (rate <= EASY), rate < HARD, np.ones(len(rate), dtype=bool)]
        chosen = spend(self._budget, self._order)
        self._committed[[row for row, _ in chosen]] = True
        return chosen

    def trained(self, drawn: np.ndarray, mixed: np.ndarray) -> np.ndarray:
        """Select the prompts that got rollouts after their pilot; all with rollouts where none did."""
        kept = drawn & self._committed
        return kept if kept.any() else drawn


def spend(budget: RolloutBudget, order: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Spend what is free evenly on the prompts of the first mask (M,), then on those of the next; return [(row, rollouts)]."""
    before, cost, cap = (
        np.array(budget.held, dtype=np.int64),
        np.array(budget.cost),
        np.array(budget.cap, dtype=np.int64),
    )
    held = before.copy()
    for group in order:
        held[group] = fill(held[group], cap[group], cost[group], budget.free - float(cost @ (held - before)))
    more = held - before
    budget.free -= float(cost @ more)
    budget.held[:] = held.tolist()
    return [(int(row), int(more[row])) for row in np.flatnonzero(more)]


def fill(held: np.ndarray, cap: np.ndarray, cost: np.ndarray, budget: float) -> np.ndarray:
    """Raise the rollouts of M prompts evenly, as far as a budget pays.

    What is left pays for no further rollout of a prompt below its cap: where the next in turn is too expensive, cheaper ones
    go on.

    Args:
        held: (M,) int64.
        cap: (M,) int64.
        cost: (M,) of one rollout.
        budget: in the unit of cost.

    Returns:
        (M,) int64.
    """
    held, cap, left = held.copy(), np.maximum(cap, held), budget + 1e-9
    while len(rows := np.flatnonzero((held < cap) & (cost <= left))):
        low, high = 1, int((cap - held)[rows].sum())
        # binary search for the most rollouts that the budget pays for
        while low < high:
            middle = (low + high + 1) // 2
            paid = float(cost[rows] @ (spread(held[rows], cap[rows], middle) - held[rows])) <= left
            low, high = (middle, high) if paid else (low, middle - 1)
        raised = spread(held[rows], cap[rows], low)
        left -= float(cost[rows] @ (raised - held[rows]))
        held[rows] = raised
    return held
