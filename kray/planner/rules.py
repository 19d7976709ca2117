"""How a step goes on: what is promised next, given the labels so far. One small object per kind of mode.

A rule is asked `more(rollouts)` for about that many more rollouts to promise and answers [(row, rollouts)], having taken them
out of the purse. An empty answer means: nothing now. While nothing is in flight that is final.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from kray.planner.greedy import Greedy, Purse
from kray.planner.solver import spread

EASY, HARD = 0.9, 0.1  # pilot_commit's thresholds on the pilot's success rate


class Labels(Protocol):
    """What a rule may know of the step (a StepPlan)."""

    in_flight: int
    mixed: int  # groups with different labels so far

    def success_rate(self) -> np.ndarray: ...

    def expected_mixed(self) -> float: ...


class Rule:
    """Nothing after the first promise, and lost rollouts stay lost: uniform, paper, paper_released, coba, weight_only."""

    def more(self, rollouts: int) -> list[tuple[int, int]]:
        return []

    def labelled(self, row: int, passed: float, failed: float) -> None:
        """Labels have come back."""

    def lost(self, row: int) -> None:
        """Rollouts of a prompt are lost for good; the purse already holds their budget again."""

    def refunded(self) -> None:
        """Budget has come back to the purse: rollouts took fewer tokens than expected."""


class Respend(Rule):
    """The static plan: nothing more, unless rollouts are lost, whose budget goes to the best prompts then."""

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
        if self._greedy:
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
    """DAPO's dynamic sampling, arXiv 2503.14476: prompts are opened wave by wave until enough groups are mixed.

    Each wave is `groups` fresh candidates with `size` rollouts each, begun when the one before is fully labelled; every
    rollout counts. The purse holds the first wave, which has all that are due. Departure: a wave is one batch of prompts
    (theirs may be larger), and candidates are finite.
    """

    def __init__(self, purse: Purse, step: Labels, groups: int, size: int):
        self._purse, self._step, self._groups, self._size = purse, step, groups, size
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


class Commit(Rule):
    """Pilot-Commit, arXiv 2605.26606: after the pilot, all that is left goes evenly to prompts of middling success.

    A prompt over 0.9 in its pilot is skipped, one under 0.1 deferred (the thresholds of the authors' code). Departures:
    both come back at their next visit like any prompt, where theirs are evicted or queued; without middling prompts, or
    once they are full, the rest goes to hard ones and then to all, so that the budget is always spent; theirs generates
    pilots for more prompts than it commits to.
    """

    def __init__(self, purse: Purse, step: Labels):
        self._purse, self._step, self._committed = purse, step, False

    def more(self, rollouts: int) -> list[tuple[int, int]]:
        purse = self._purse
        if self._step.in_flight or self._committed:
            return []
        self._committed = True
        rate = self._step.success_rate()
        before, cost = np.array(purse.held, dtype=np.int64), np.array(purse.cost)
        held, cap = before.copy(), np.array(purse.cap, dtype=np.int64)
        for group in ((rate >= HARD) & (rate <= EASY), rate < HARD, np.ones(len(rate), dtype=bool)):
            held[group] = fill(held[group], cap[group], cost[group], purse.free - float(cost @ (held - before)))
        more = held - before
        purse.free -= float(cost @ more)
        purse.held[:] = held.tolist()
        return [(int(row), int(more[row])) for row in np.flatnonzero(more)]


def fill(held: np.ndarray, cap: np.ndarray, cost: np.ndarray, budget: float) -> np.ndarray:
    """held, raised evenly to at most cap, for at most `budget` in the unit of cost; all (M,); returns (M,) int64."""
    if not len(held):
        return held
    low, high = 0, int(np.maximum(cap - held, 0).sum())
    while low < high:  # the most rollouts that the budget pays for
        middle = (low + high + 1) // 2
        if float(cost @ (spread(held, np.maximum(cap, held), middle) - held)) <= budget + 1e-9:
            low = middle
        else:
            high = middle - 1
    return spread(held, np.maximum(cap, held), low)
