"""The life of one engine.

Pure. An engine serves only weights that it has proved: SERVING is reached from STALE alone, by `proved`, and every new
policy version makes a serving engine STALE again. Whatever fails in between is the engine's death: DEAD, then STARTING
anew within the restart budget.

    RESTING -> STARTING -> STALE -> SERVING -> STALE -> ... -> DEAD -> STARTING | GONE
       ^_________|___________|________|                          (not needed any more)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    RESTING = "resting"  # not needed now, holds nothing of the cluster
    STARTING = "starting"
    STALE = "stale"  # up, but its weights are not the newest or not proved
    SERVING = "serving"
    DEAD = "dead"
    GONE = "gone"  # dead, and out of restarts


@dataclass(slots=True)
class Health:
    """max_restarts: over the run, preemptions not counted; the wait before a restart is 0, 2, 4, ... 30 s while it fails
    without having served."""

    max_restarts: int
    state: State = State.RESTING
    version: int = -1  # the newest policy version that it has proved
    restarts: int = 0
    failures_in_a_row: int = 0
    reason: str = ""  # of the last death
    preempted: bool = False  # whether that was a preemption

    def needed(self) -> None:
        self._move(State.RESTING, State.STARTING)

    def rested(self) -> None:
        """It was stopped because there is nothing to do for it."""
        if self.state not in (State.STARTING, State.STALE, State.SERVING):
            raise ValueError(f"an engine that is {self.state.value} cannot rest")
        self.state, self.version = State.RESTING, -1

    def started(self) -> None:
        self._move(State.STARTING, State.STALE)

    def outdated(self) -> None:
        """A newer policy version exists."""
        if self.state is State.SERVING:
            self.state = State.STALE

    def proved(self, version: int) -> None:
        if version < self.version:
            raise ValueError(f"an engine cannot go back from version {self.version} to {version}")
        self._move(State.STALE, State.SERVING)
        self.version, self.failures_in_a_row = version, 0

    def died(self, reason: str, preempted: bool = False) -> None:
        """preempted: its node was taken away, which is no fault of the engine."""
        self.state, self.reason, self.version = State.DEAD, reason, -1
        self.preempted = preempted
        self.failures_in_a_row += 1

    def restart(self) -> float | None:
        """Seconds to wait before the engine starts anew; None when its restarts are used up."""
        if self.restarts >= self.max_restarts and not self.preempted:
            self._move(State.DEAD, State.GONE)
            return None
        self._move(State.DEAD, State.STARTING)
        self.restarts += not self.preempted
        return min(30.0, 2.0 ** (self.failures_in_a_row - 1)) if self.failures_in_a_row > 1 else 0.0

    def _move(self, expected: State, to: State) -> None:
        if self.state is not expected:
            raise ValueError(f"an engine that is {self.state.value} cannot become {to.value}")
        self.state = to
