"""What the monitor reads of a training that is under way, as protocols: it depends on neither the driver nor the pool."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from enum import Enum
from typing import Protocol

import numpy as np

from kray.config import KrayConfig


class ObservedHealth(Protocol):
    """The health of an engine.

    Attributes:
        version: The newest policy version whose weights it has verified.
        restarts: How often it was started again.
        reason: Why it was lost the last time, "" if it never was.
    """

    version: int
    restarts: int
    reason: str

    @property
    def state(self) -> Enum:
        """What it is doing; the value is a word."""

    @property
    def serving(self) -> bool:
        """Whether it serves the newest weights."""


class ObservedEngine(Protocol):
    """An engine.

    Attributes:
        name: Such as engine-0.
        busy_s: Seconds in which it generated.
        up_s: Seconds for which its former actors were up.
        up_since: When its actor came up, in monotonic seconds; None while it is not up.
        tokens: Response tokens that it has delivered.
    """

    name: str
    busy_s: float
    up_s: float
    up_since: float | None
    tokens: int

    @property
    def health(self) -> ObservedHealth:
        """Its health."""


class ObservedSchedule(Protocol):
    """The assignment of rollout tasks to engines; `waiting`, `running` and `retried` count tasks."""

    waiting: int
    running: int
    retried: int

    def load(self, engine: str) -> int:
        """Return the unfinished rollouts of an engine."""

    def holding(self, engine: str) -> tuple[int, int]:
        """Return the (tasks, rollouts) of an engine."""


class ObservedPool(Protocol):
    """The engines of a run."""

    @property
    def preemptions(self) -> int:
        """Engines lost with preempted nodes so far."""

    @property
    def engines(self) -> Sequence[ObservedEngine]:
        """All engines, whether they are up or not."""

    @property
    def schedule(self) -> ObservedSchedule:
        """Which engine holds which tasks."""


class ObservedScorer(Protocol):
    """The reward workers of a run; counts of responses that took too long, and of workers that were replaced."""

    @property
    def timeouts(self) -> int:
        """Responses that took too long."""

    @property
    def restarts(self) -> int:
        """Workers that were replaced."""


class ObservedWorkers(Protocol):
    """The actors of a run; `ready` once the learner holds the policy."""

    ready: bool

    @property
    def pool(self) -> ObservedPool:
        """The engines."""

    @property
    def scorer(self) -> ObservedScorer:
        """The reward workers."""


class ObservedState(Protocol):
    """Completed steps, rollouts and response tokens since the run began."""

    step: int
    rollouts: int
    tokens: int


class ObservedRecorder(Protocol):
    """The record of the newest steps; `budgets` (M,) are the rollouts of the newest step's prompts."""

    budgets: np.ndarray

    @property
    def steps(self) -> Sized:
        """The metrics of the newest steps since this start."""

    def left_s(self, steps: int) -> float:
        """Return the seconds that so many more steps will take."""


class ObservedStop(Protocol):
    """Why the run is to stop, "" if it is not."""

    reason: str


class ObservedTracker(Protocol):
    """The record of the run in MLflow."""

    @property
    def open_command(self) -> str:
        """How to open it."""


class ObservedTraining(Protocol):
    """A training that is under way."""

    config: KrayConfig

    @property
    def state(self) -> ObservedState:
        """How far it has come."""

    @property
    def workers(self) -> ObservedWorkers:
        """Its actors."""

    @property
    def recorder(self) -> ObservedRecorder:
        """Its newest steps."""

    @property
    def stop(self) -> ObservedStop:
        """Whether it is to stop."""

    @property
    def tracker(self) -> ObservedTracker:
        """Its record."""
