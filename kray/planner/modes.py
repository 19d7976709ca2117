"""How a step goes on: what is promised next, given the labels so far. One small object per kind of mode.

A rule is asked `more(rollouts)` for about that many more rollouts to promise and answers [(row, rollouts)], having taken them
out of the purse. An empty answer means: nothing now. While nothing is in flight that is final.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from kray.planner.greedy import Greedy, RolloutBudget
from kray.planner.solver import spread

EASY, HARD = 0.9, 0.1  # pilot_commit's thresholds on the pilot's success rate


class Labels(Protocol):
    """What a rule may know of the step (a StepPlan)."""

    in_flight: int
    mixed: int  # groups with different labels so far

    def success_rate(self) -> np.ndarray: ...

    def expected_mixed(self) -> float: ...


class Rule:
    """Nothing after the first promise, and lost rollouts stay lost: uniform, paper, paper_released, coba, weight_only where
    the budget counts rollouts."""

    def more(self, rollouts: int) -> list[tuple[int, int]]:
        return []

    def labelled(self, row: int, passed: float, failed: float) -> None:
        """Labels have come back."""

    def lost(self, row: int) -> None:
        """Rollouts of a prompt are lost for good; the purse already holds their budget again."""

    def refunded(self) -> None:
        """Budget has come back to the purse: rollouts took fewer tokens than expected."""

    def learned(self, on: np.ndarray, mixed: np.ndarray) -> np.ndarray:
        """Of the prompts with rollouts, those whose groups are learned from, (M,) bool. on, mixed (M,) bool: with rollouts,
        with different labels."""
        return on


class Even(Rule):
    """The same modes where the budget counts tokens: what rollouts took less than expected goes evenly to all prompts."""

    def __init__(self, purse: RolloutBudget):
        self._purse, self._cheapest, self._more = purse, min(purse.cost, default=0.0), False

    def more(self, rollouts: int) -> list[tuple[int, int]]:
        if not self._more or self._purse.free < self._cheapest:
            return []
        self._more = False
        return spend(self._purse, [np.ones(len(self._purse.held), dtype=bool)])

    def refunded(self) -> None:
        self._more = True


class Respend(Rule):
    """The static plan: nothing more, unless budget comes back (rollouts are lost, or take fewer tokens than expected). It
    goes to the best prompts then."""

    def __init__(self, make: Callable[[], Greedy]):
        self._make = make
        self._greedy: Greedy | None = None

    def more(self, rollouts: int) -> list[tuple[int, int]]:
        return self._greedy.more(rollouts) if self._greedy else []

    def labelled(self, row: int, passed: float, failed: float) -> None:
        if self._greedy:
            self._greedy.marginal.label(row, passed, failed)
            self._greedy.touched(row)

    def lost(self, row: int) -> None:
        if self._greedy is None:
            self._greedy = self._make()
        self._greedy.touched(row)
        self._greedy.refunded()

    def refunded(self) -> None:
        if self._greedy is None:
            self._greedy = self._make()
        self._greedy.refunded()


class Online(Rule):
    """The best rollouts now, continuously. target_groups > 0: none while enough groups are mixed or about to be."""

    def __init__(self, greedy: Greedy, step: Labels, target_groups: int = 0):
        self.greedy, self._step, self._target = greedy, step, target_groups

    def more(self, rollouts: int) -> list[tuple[int, int]]:
        if self._target and self._step.expected_mixed() >= self._target:
            return []
        return self.greedy.more(min(rollouts, self._target) if self._target else rollouts)

    def labelled(self, row: int, passed: float, failed: float) -> None:
        self.greedy.marginal.label(row, passed, failed)
        self.greedy.touched(row)

    def lost(self, row: int) -> None:
        self.greedy.touched(row)
        self.greedy.refunded()

    def refunded(self) -> None:
        self.greedy.refunded()


class Rounds(Online):
    """`rounds` equal parts of what the pilot left, each planned when all labels of the one before are back."""

    def __init__(self, greedy: Greedy, step: Labels, rounds: int):
        super().__init__(greedy, step)
        self._left = rounds

    def more(self, rollouts: int) -> list[tuple[int, int]]:
        if self._step.in_flight:
            return []
        purse = self.greedy.purse
        kept = purse.free * (1 - 1 / max(1, self._left))
        kept = float(int(kept)) if all(cost == 1 for cost in purse.cost[:1]) else kept
        purse.free -= kept
        chosen = self.greedy.more(2**62)
        purse.free += kept
        self.greedy.refunded()
        self._left -= 1
        if not chosen and self._left > 0:
            return self.more(rollouts)
        return chosen


class Waves(Rule):
    """DAPO's dynamic sampling, arXiv 2503.14476, equation 11: prompts are opened wave by wave until enough groups are mixed,
    and only the first `kept` mixed groups are learned from: the others are in no denominator of the loss.

    Each wave is `groups` fresh candidates with `size` rollouts each, begun when the one before is fully labelled; every
    rollout counts as spent. The purse holds the first wave, which has all that are due. Departures: a wave is one batch of
    prompts (theirs may be larger); candidates are plan.candidates times a batch, and a step in which they do not suffice
    learns from a smaller batch (theirs samples until the batch is full, or ends the run); labels that are graded make a
    group mixed when they differ (theirs filters by accuracy 0 and 1).
    Of the paper's other parts, train.loss dapo has the two clips (equation 10; of use with train.updates > 1, the paper
    makes 16 updates a step), the loss by tokens (equation 12) and no KL. It has no overlong filtering and no soft overlong
    punishment (equation 13): a response that is cut earns what its verifier says.
    """

    def __init__(self, purse: RolloutBudget, step: Labels, groups: int, size: int, kept: int):
        self._purse, self._step, self._groups, self._size, self._kept = purse, step, groups, size, kept
        self._fresh = [row for row, held in enumerate(purse.held) if not held]

    def more(self, rollouts: int) -> list[tuple[int, int]]:
        purse = self._purse
        if self._step.in_flight or self._step.mixed >= self._groups:
            return []
        rows, self._fresh = self._fresh[: self._groups], self._fresh[self._groups :]
        for row in rows:
            purse.held[row] += self._size
            purse.free -= self._size * purse.cost[row]
        return [(row, self._size) for row in rows]

    def learned(self, on: np.ndarray, mixed: np.ndarray) -> np.ndarray:
        kept = mixed & (np.cumsum(mixed) <= self._kept)
        return kept if kept.any() else on


class Commit(Rule):
    """Pilot-Commit, arXiv 2605.26606: after the pilot, all that is left goes evenly to prompts of middling success.

    A prompt over 0.9 in its pilot is skipped, one under 0.1 deferred (the thresholds of the authors' code), and only the
    others are learned from, with their pilot's rollouts, as in that code: a prompt that got nothing after its pilot is in
    no denominator of the loss, unless no prompt got anything.
    Departures: both come back at their next visit like any prompt, where theirs are evicted or queued; without middling
    prompts, or once they are full, the rest goes to hard ones and then to all, so that the budget is always spent; theirs
    generates pilots for more prompts than it commits to. In budgets of tokens what comes back is spent by the same order.
    """

    def __init__(self, purse: RolloutBudget, step: Labels):
        self._purse, self._step = purse, step
        self._order: list[np.ndarray] | None = None  # masks of prompts, those that are served first in front
        self._committed = np.zeros(len(purse.held), dtype=bool)

    def more(self, rollouts: int) -> list[tuple[int, int]]:
        if self._step.in_flight:
            return []
        if self._order is None:
            rate = self._step.success_rate()
            self._order = [(rate >= HARD) & (rate <= EASY), rate < HARD, np.ones(len(rate), dtype=bool)]
        chosen = spend(self._purse, self._order)
        self._committed[[row for row, _ in chosen]] = True
        return chosen

    def learned(self, on: np.ndarray, mixed: np.ndarray) -> np.ndarray:
        kept = on & self._committed
        return kept if kept.any() else on


def spend(purse: RolloutBudget, order: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Spends what is free evenly on the prompts of the first mask (M,), then on those of the next; [(row, rollouts)]."""
    before, cost, cap = np.array(purse.held, dtype=np.int64), np.array(purse.cost), np.array(purse.cap, dtype=np.int64)
    held = before.copy()
    for group in order:
        held[group] = fill(held[group], cap[group], cost[group], purse.free - float(cost @ (held - before)))
    more = held - before
    purse.free -= float(cost @ more)
    purse.held[:] = held.tolist()
    return [(int(row), int(more[row])) for row in np.flatnonzero(more)]


def fill(held: np.ndarray, cap: np.ndarray, cost: np.ndarray, budget: float) -> np.ndarray:
    """held, raised evenly to at most cap, for at most `budget` in the unit of cost; all (M,); returns (M,) int64.

    Nothing is left that would pay for one more rollout of a prompt below its cap: where the next in turn is too dear, the
    cheaper ones go on.
    """
    held, cap, left = held.copy(), np.maximum(cap, held), budget + 1e-9
    while len(rows := np.flatnonzero((held < cap) & (cost <= left))):
        low, high = 1, int((cap - held)[rows].sum())
        while low < high:  # the most rollouts that the budget pays for
            middle = (low + high + 1) // 2
            paid = float(cost[rows] @ (spread(held[rows], cap[rows], middle) - held[rows])) <= left
            low, high = (middle, high) if paid else (low, middle - 1)
        raised = spread(held[rows], cap[rows], low)
        left -= float(cost[rows] @ (raised - held[rows]))
        held[rows] = raised
    return held
