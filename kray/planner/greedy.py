"""The online plan's choice: the prompt whose next rollout is worth most now, per unit of its cost.

A heap of one entry per open prompt, (-worth, rollouts held, row): equal worth goes to the prompt that holds fewest
rollouts, then to the first, so equal histories give equal plans. Entries are never searched for: an event makes a new one
and the old is skipped when it surfaces (`_entry[row]` is the only live one). A prompt that holds nothing yet is opened by its
first block at the block's worth per rollout, the concave envelope of its gains.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np

from kray.planner.marginals import Marginal
from kray.planner.solver import solve

BULK = 20_000  # rollouts asked for at once from which the vectorised solver is used: the same gains, the same choice

Entry = tuple[float, int, int]


@dataclass
class RolloutBudget:
    """What each prompt holds and what is left: shared by a StepPlan and its rule. Lists of length M.

    held: rollouts dispatched or promised, less lost ones. cap: rollouts that held may not exceed. cost: of one rollout, in
    the budget's unit. free: budget that nobody holds.
    """

    held: list[int]
    cap: list[int]
    cost: list[float]
    free: float
    block: int  # rollouts that open a prompt
    fragile: bool  # where nothing else fits, a last block may be cut to what is left
    tolerance: float = field(default=1e-9)  # relative to the budget, for sums of fractional costs


class Greedy:
    """Spends a purse by a marginal."""

    def __init__(self, marginal: Marginal, purse: RolloutBudget, opening: np.ndarray | None = None):
        """opening (M,): worth per rollout of each prompt's first block, used while it holds nothing."""
        self.marginal, self.purse = marginal, purse
        self._opening = [] if opening is None else opening.tolist()
        self._dirty: set[int] = set()
        self._dear: set[int] = set()  # open, but their next rollout costs more than was free
        self._entry: list[Entry | None] = []
        self._heap: list[Entry] = []
        self._build()

    def touched(self, row: int) -> None:
        """The row's marginal, holdings or cap have changed."""
        self._dirty.add(row)

    def refunded(self) -> None:
        """Budget has come back."""
        self._dirty |= self._dear
        self._dear.clear()

    def more(self, rollouts: int) -> list[tuple[int, int]]:
        """Promises about `rollouts` more (an opened block is whole), best first; [(row, rollouts)] in order of choice."""
        if min(rollouts, self.purse.free) >= BULK:
            bulk = self._bulk(rollouts)
            if bulk is not None:
                return bulk
        purse, heap, entries, marginal = self.purse, self._heap, self._entry, self.marginal
        held, cap, cost = purse.held, purse.cap, purse.cost
        slack = purse.tolerance
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
            size = 1 if held[row] else min(purse.block, cap[row])
            price = cost[row] * size
            if price > purse.free + slack:
                heapq.heappop(heap)
                entries[row] = None
                self._dear.add(row)
                continue
            purse.free -= price
            marginal.hold(row, size)
            n = held[row] = held[row] + size
            chosen[row] = chosen.get(row, 0) + size
            rollouts -= size
            if n < cap[row]:
                fresh = (-marginal.key(row) / cost[row], n, row)
                entries[row] = fresh
                heapq.heapreplace(heap, fresh)
            else:
                entries[row] = None
                heapq.heappop(heap)
        if rollouts > 0 and purse.fragile:
            for row, size in self._cut_blocks():
                chosen[row] = chosen.get(row, 0) + size
        return list(chosen.items())

    def _cut_blocks(self) -> list[tuple[int, int]]:
        """Opens prompts, best first, with less than a block: whatever is left pays for nothing else."""
        purse, chosen = self.purse, []
        closed = [row for row in self._dear if not purse.held[row] and purse.cost[row] <= purse.free + purse.tolerance]
        for row in sorted(closed, key=lambda row: (self._key(row), row)):
            size = int((purse.free + purse.tolerance) // purse.cost[row])
            if size:
                purse.free -= size * purse.cost[row]
                self.marginal.hold(row, size)
                purse.held[row] = size
                self.touched(row)
                chosen.append((row, size))
        return chosen

    def _key(self, row: int) -> float:
        worth = self.marginal.key(row) if self.purse.held[row] else self._opening[row]
        return -worth / self.purse.cost[row]

    def _push(self, row: int) -> None:
        held = self.purse.held[row]
        self._dear.discard(row)
        if held >= self.purse.cap[row]:
            self._entry[row] = None
            return
        entry = self._entry[row] = (self._key(row), held, row)
        heapq.heappush(self._heap, entry)

    def _build(self) -> None:
        held, cap = self.purse.held, self.purse.cap
        self._entry = [(self._key(i), held[i], i) if held[i] < cap[i] else None for i in range(len(held))]
        self._compact()

    def _compact(self) -> None:
        self._heap = [entry for entry in self._entry if entry is not None]
        heapq.heapify(self._heap)

    def _bulk(self, rollouts: int) -> list[tuple[int, int]] | None:
        """The same by the solver; None where it does not apply (costs, unopened prompts, marginals without a value)."""
        purse, value = self.purse, self.marginal.value()
        held, cap = np.array(purse.held), np.array(purse.cap)
        if value is None or not held.all() or set(purse.cost) != {1.0}:
            return None
        held_before = held
        rollouts = int(min(rollouts, purse.free, (np.maximum(cap, held) - held).sum()))
        held = solve(value, int(held.sum()) + rollouts, held, np.maximum(cap, held))
        rows = np.flatnonzero(held > held_before)
        chosen = list(zip(rows.tolist(), (held - held_before)[rows].tolist(), strict=True))
        for row, more in chosen:
            purse.held[row] += more
            self.marginal.hold(row, more)
        purse.free -= rollouts
        self._dirty.clear()
        self._build()
        return chosen
