"""How many engines a pool needs. Pure: `now` (seconds, monotonic) is passed to every call."""

from __future__ import annotations

from collections import deque


class Autoscaler:
    """Derives the number of engines from the number of unfinished rollouts.

    More engines are desired at once; fewer only after the need has been lower for `idle_s`, so that engines outlast the
    learner's updates between two steps.
    """

    def __init__(self, min_engines: int, max_engines: int, rollouts_per_engine: int, idle_s: float):
        """Create an autoscaler that has seen no need yet.

        Args:
            min_engines: Fewest engines, at least 0.
            max_engines: Most engines, at least 1.
            rollouts_per_engine: One engine is needed for every so many unfinished rollouts.
            idle_s: Seconds for which the need must have been lower before fewer engines are desired.

        Raises:
            ValueError: The bounds contradict each other.
        """
        if not (0 <= min_engines <= max_engines and max_engines >= 1 and rollouts_per_engine >= 1):
            raise ValueError(f"cannot have {min_engines} to {max_engines} engines of {rollouts_per_engine} rollouts")
        self.min_engines, self.max_engines = min_engines, max_engines
        self.rollouts_per_engine, self.idle_s = rollouts_per_engine, idle_s
        # (time, engines needed) with falling needs, the largest first.
        self._needs: deque[tuple[float, int]] = deque()

    def desired(self, rollouts: int, now: float) -> int:
        """Return the engines for so many unfinished rollouts: the largest need of the last `idle_s` seconds."""
        need = min(self.max_engines, max(self.min_engines, -(-rollouts // self.rollouts_per_engine)))
        while self._needs and self._needs[-1][1] <= need:
            self._needs.pop()
        self._needs.append((now, need))
        while len(self._needs) > 1 and self._needs[0][0] + self.idle_s <= now:
            self._needs.popleft()
        return self._needs[0][1]
