"""How many engines a pool wants.

Pure: `now` (seconds, monotonic) comes in with every call. An engine is wanted for every `per_engine` rollouts in hand,
between `least` and `most`. More are wanted at once; fewer only when the need has been lower for `idle_s`, so that engines
outlast the learner's updates between two steps.
"""

from __future__ import annotations

from collections import deque


class Sizing:
    """Raises ValueError unless 0 <= least <= most, most >= 1."""

    def __init__(self, least: int, most: int, per_engine: int, idle_s: float):
        if not (0 <= least <= most and most >= 1 and per_engine >= 1):
            raise ValueError(f"cannot have {least} to {most} engines of {per_engine} rollouts")
        self.least, self.most, self.per_engine, self.idle_s = least, most, per_engine, idle_s
        self._needs: deque[tuple[float, int]] = deque()  # (when, engines needed): falling needs, the largest first

    def wanted(self, rollouts: int, now: float) -> int:
        """Engines for so many rollouts in hand: the largest need of the last idle_s seconds."""
        need = min(self.most, max(self.least, -(-rollouts // self.per_engine)))
        while self._needs and self._needs[-1][1] <= need:
            self._needs.pop()
        self._needs.append((now, need))
        while len(self._needs) > 1 and self._needs[0][0] + self.idle_s <= now:
            self._needs.popleft()
        return self._needs[0][1]
