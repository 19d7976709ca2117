"""Greedy allocation: the next rollout goes to the prompt whose marginal gain per unit of cost is largest now.

A heap has one entry per open prompt, (-gain per cost, rollouts held, row): equal gains go to the prompt that holds fewest
rollouts, then to the first, so equal histories give equal plans. Entries are never searched for: an event makes a new one, and
the old one is skipped when it reaches the top (`_entry[row]` is the only valid one). A prompt that holds nothing yet is opened
by its first block at the block's gain per rollout, the concave envelope of its gains.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from kray.planner.marginals import Marginal
from kray.planner.solver import solve

# Rollouts requested at once from which the vectorised solver is used: the same gains, hence the same choice, but faster.
BULK = 20_000

# (-gain per cost, rollouts held, row)
Entry = tuple[float, int, int]


@dataclass
class RolloutBudget:
    """Budget of one step: what each prompt holds and what is left. A StepPlan and its rule share it.

    Attributes:
        held: (M,) rollouts allocated to each prompt, dispatched or not, less lost ones.
        cap: (M,) most rollouts that a prompt may hold.
        cost: (M,) of one rollout, in the budget's unit.
        free: budget that is not allocated.
        block: rollouts that open a prompt.
        partial_blocks: whether a last block may be cut to what is left where nothing else fits.
        tolerance: slack for sums of fractional costs, in the budget's unit.
    """

    held: list[int]
    cap: list[int]
    cost: list[float]
    free: float
    block: int
    partial_blocks: bool
    tolerance: float = 1e-9


class Greedy:
    """Allocates a budget by marginal gains."""

    def __init__(self, marginal: Marginal, budget: RolloutBudget, opening: np.ndarray | None = None):
        """Start from what `budget` holds.

        Args:
            marginal: of the M prompts; it is kept up to date with the rollouts that are allocated.
            budget: spent in place.
            opening: (M,) gain per rollout of each prompt's first block, used while it holds nothing.
        """
        self.marginal, self.budget = marginal, budget
        self._opening = [] if opening is None else opening.tolist()
        self._dirty: set[int] = set()
        # open, but their next rollout costs more than was free
        self._unaffordable: set[int] = set()
        self._entry: list[Entry | None] = []
        self._heap: list[Entry] = []
        self._build()

    def mark_changed(self, row: int) -> None:
        """Note that the row's marginal, holdings or cap have changed."""
        self._dirty.add(row)

    def budget_returned(self) -> None:
        """Note that free budget has grown."""
        self._dirty |= self._unaffordable
        self._unaffordable.clear()

    def allocate(self, rollouts: int) -> list[tuple[int, int]]:
        """Allocate about `rollouts` more (an opened block is whole), best first; return [(row, rollouts)] in this order."""
        if min(rollouts, self.budget.free) >= BULK:
            bulk = self._bulk(rollouts)
            if bulk is not None:
                return bulk
        budget, heap, entries, marginal = self.budget, self._heap, self._entry, self.marginal
        held, cap, cost = budget.held, budget.cap, budget.cost
        slack = budget.tolerance
        if self._dirty:
            for row in sorted(self._dirty):
                self._push(row)
            self._dirty.clear()
            if len(heap) > 4 * len(held) + 1024:
                self._compact()
                heap = self._heap
        chosen: dict[int, int] = {}
        while rollouts > 0 and heap:
            entry = heap[0]
            row = entry[2]
            if entries[row] is not entry:
                heapq.heappop(heap)
                continue
            size = 1 if held[row] else min(budget.block, cap[row])
            price = cost[row] * size
            if price > budget.free + slack:
                heapq.heappop(heap)
                entries[row] = None
                self._unaffordable.add(row)
                continue
            budget.free -= price
            marginal.allocate(row, size)
            n = held[row] = held[row] + size
            chosen[row] = chosen.get(row, 0) + size
            rollouts -= size
            if n < cap[row]:
                fresh = (-marginal.next_gain(row) / cost[row], n, row)
                entries[row] = fresh
                heapq.heapreplace(heap, fresh)
            else:
                entries[row] = None
                heapq.heappop(heap)
        if rollouts > 0 and budget.partial_blocks:
            for row, size in self._cut_blocks():
                chosen[row] = chosen.get(row, 0) + size
        return list(chosen.items())

    def _cut_blocks(self) -> list[tuple[int, int]]:
        """Open prompts, best first, with less than a block, since what is left pays for nothing else."""
        budget, chosen = self.budget, []
        closed = [
            row
            for row in self._unaffordable
            if not budget.held[row] and budget.cost[row] <= budget.free + budget.tolerance
        ]
        for row in sorted(closed, key=lambda row: (self._key(row), row)):
            size = int((budget.free + budget.tolerance) // budget.cost[row])
            if size:
                budget.free -= size * budget.cost[row]
                self.marginal.allocate(row, size)
                budget.held[row] = size
                self.mark_changed(row)
                chosen.append((row, size))
        return chosen

    def _key(self, row: int) -> float:
        gain = self.marginal.next_gain(row) if self.budget.held[row] else self._opening[row]
        return -gain / self.budget.cost[row]

    def _push(self, row: int) -> None:
        held = self.budget.held[row]
        self._unaffordable.discard(row)
        if held >= self.budget.cap[row]:
            self._entry[row] = None
            return
        entry = self._entry[row] = (self._key(row), held, row)
        heapq.heappush(self._heap, entry)

    def _build(self) -> None:
        held, cap = self.budget.held, self.budget.cap
        self._entry = [(self._key(i), held[i], i) if held[i] < cap[i] else None for i in range(len(held))]
        self._compact()

    def _compact(self) -> None:
        self._heap = [entry for entry in self._entry if entry is not None]
        heapq.heapify(self._heap)

    def _bulk(self, rollouts: int) -> list[tuple[int, int]] | None:
        """Do the same by the solver; return None where costs, unopened prompts or a marginal without a value rule it out."""
        budget, value = self.budget, self.marginal.value()
        held, cap = np.array(budget.held), np.array(budget.cap)
        if value is None or not held.all() or set(budget.cost) != {1.0}:
            return None
        held_before = held
        rollouts = int(min(rollouts, budget.free, (np.maximum(cap, held) - held).sum()))
        held = solve(value, int(held.sum()) + rollouts, held, np.maximum(cap, held))
        rows = np.flatnonzero(held > held_before)
        chosen = list(zip(rows.tolist(), (held - held_before)[rows].tolist(), strict=True))
        for row, more in chosen:
            budget.held[row] += more
            self.marginal.allocate(row, more)
        budget.free -= rollouts
        self._dirty.clear()
        self._build()
        return chosen
