"""The state machine of one engine. Pure.

An engine serves only weights that it has proved: SERVING is entered from STALE alone, by `mark_proved`, and every new policy
version makes a serving engine STALE again. Any failure makes the engine DEAD; within the restart budget it then starts again.

    RESTING -> STARTING -> STALE -> SERVING -> STALE -> ... -> DEAD -> STARTING | GONE
       ^_________|___________|________|                          (no longer needed)
                           STALE | SERVING -> ASLEEP -> STALE    (a learner rank uses its device)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kray.text import one_line

# Seconds, the longest wait before a restart.
MAX_RESTART_DELAY_S = 30.0


class State(Enum):
    """What an engine is doing; the values appear in status files.

    Attributes:
        RESTING: Not needed now; holds no resources of the cluster.
        STARTING: Its actor is being placed or loads the model.
        STALE: Up, but its weights are not the newest or not proved.
        SERVING: Takes rollout tasks.
        ASLEEP: Up, without weights, keys and values, while a learner rank uses its device.
        DEAD: Its actor was lost; it may start again.
        GONE: Its actor was lost and no restart is left.
    """

    RESTING = "resting"
    STARTING = "starting"
    STALE = "stale"
    SERVING = "serving"
    ASLEEP = "asleep"
    DEAD = "dead"
    GONE = "gone"


@dataclass(slots=True)
class Health:
    """State, proved version and restarts of one engine.

    Attributes:
        max_restarts: Restarts allowed over the run; preemptions do not count.
        state: What the engine is doing.
        version: Newest policy version that it has proved; -1 for none.
        restarts: Restarts so far, without those after preemptions.
        failures_in_a_row: Failures since it last served.
        reason: Why it was lost last.
        preempted: Whether it was lost last because its node was preempted.
    """

    max_restarts: int
    state: State = State.RESTING
    version: int = -1
    restarts: int = 0
    failures_in_a_row: int = 0
    reason: str = ""
    preempted: bool = False

    @property
    def serving(self) -> bool:
        """Whether the engine takes rollout tasks."""
        return self.state is State.SERVING

    def mark_needed(self) -> None:
        """Record that a resting engine is needed: it starts."""
        self._move(State.RESTING, State.STARTING)

    def mark_resting(self) -> None:
        """Record that the engine was stopped because it is not needed.

        Raises:
            ValueError: The engine is not up and not starting.
        """
        if self.state not in (State.STARTING, State.STALE, State.SERVING):
            raise ValueError(f"an engine that is {self.state.value} cannot rest")
        self.state, self.version = State.RESTING, -1

    def mark_started(self) -> None:
        """Record that the engine has loaded its model."""
        self._move(State.STARTING, State.STALE)

    def mark_stale(self) -> None:
        """Record that a newer policy version exists."""
        if self.state is State.SERVING:
            self.state = State.STALE

    def mark_asleep(self) -> None:
        """Record that the engine has discarded its weights.

        Raises:
            ValueError: It is not up.
        """
        if self.state not in (State.STALE, State.SERVING):
            raise ValueError(f"an engine that is {self.state.value} cannot sleep")
        self.state = State.ASLEEP

    def mark_awake(self) -> None:
        """Record that the engine has memory for weights again."""
        self._move(State.ASLEEP, State.STALE)

    def mark_proved(self, version: int) -> None:
        """Record that the engine has proved a policy version: it serves.

        Raises:
            ValueError: The engine is not stale, or has proved a later version.
        """
        if version < self.version:
            raise ValueError(f"an engine cannot go back from version {self.version} to {version}")
        self._move(State.STALE, State.SERVING)
        self.version, self.failures_in_a_row = version, 0

    def mark_lost(self, reason: str, preempted: bool = False) -> None:
        """Record that the engine's actor failed or was lost.

        Args:
            reason: Why, for people.
            preempted: Its node was taken away, which does not count as a failure of the engine.
        """
        self.state, self.reason, self.version = State.DEAD, one_line(reason), -1
        self.preempted = preempted
        self.failures_in_a_row += 1

    def plan_restart(self) -> float | None:
        """Move a dead engine to STARTING, or to GONE when its restarts are used up.

        Returns:
            Seconds to wait before the start: 0, 2, 4, ... up to 30 while the engine fails without having served; None when
            it must not start again.
        """
        if self.restarts >= self.max_restarts and not self.preempted:
            self._move(State.DEAD, State.GONE)
            return None
        self._move(State.DEAD, State.STARTING)
        self.restarts += not self.preempted
        if self.failures_in_a_row <= 1:
            return 0.0
        return min(MAX_RESTART_DELAY_S, 2.0 ** (self.failures_in_a_row - 1))

    def _move(self, expected: State, to: State) -> None:
        if self.state is not expected:
            raise ValueError(f"an engine that is {self.state.value} cannot become {to.value}")
        self.state = to
