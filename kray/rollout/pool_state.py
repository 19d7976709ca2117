"""What a pool and the supervisors of its engines share: settings, engines, the schedule and the published weights."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from kray.config.schema import RolloutConfig
from kray.rollout.engine_spec import EngineSpec
from kray.rollout.health import Health, State
from kray.rollout.outcome import TaskOutcome
from kray.rollout.scheduler import Schedule
from kray.rollout.sharing import Sharing
from kray.rollout.spare import Spare
from kray.weight_sync.proof import Proof
from kray.weight_sync.tolerance import TOLERANCE, Calibration


@dataclass(frozen=True, slots=True)
class Published:
    """A policy version for the engines.

    Attributes:
        version: The policy version.
        weights: Reference to `FlatWeights` in the object store; or a function that puts them there, for engines that do not get
            them otherwise, and returns references to buckets of them.
        checksum: `FlatWeights.checksum` of the weights, or a future of it.
        probe: (P,) token ids of the probe.
        logprobs: (P - 1,) the learner's logprobs of probe[1:], or a future of them, so that learner and engines can compute
            at the same time.
        start: (P - 1,) the learner's logprobs of probe[1:] with the start model, by which engines are calibrated; None where
            they are not known.
        joined: Engine -> its actor, of the engines that have joined a transfer of the weights.
    """

    version: int
    weights: Any
    checksum: str | asyncio.Future
    probe: tuple[int, ...]
    logprobs: np.ndarray | asyncio.Future
    start: np.ndarray | None = None
    joined: Mapping[str, Any] = field(default_factory=dict)


class PooledEngine:
    """One engine of a pool, over all its actors.

    Attributes:
        name: Its name in the pool, such as "engine-0".
        health: Its state and restarts.
        actor: Handle of its current actor; None while there is none.
        node: Ray's id of the node of its current actor; "" where it is not known.
        needed: Whether the pool needs it; if not, it finishes its tasks and is stopped.
        proof: Its reply to the newest weights.
        gap: Mean absolute difference in nats between its and the learner's logprobs at its last proof.
        calibrated: The probe by which its current actor was calibrated, and the result; None while it was not.
        doubts: How often it differed from the learner by more than its calibration allows and less than any engine may.
        busy_s: Seconds in which it was stepping, over all its actors.
        up_s: Seconds in which its former actors were up.
        up_since: Since when its current actor is up, monotonic s; None while none is.
        tokens: Response tokens that it has delivered.
        changed: Set when it has tasks, a newer version is published, or `needed` has changed.
    """

    def __init__(self, name: str, max_restarts: int):
        """Create an engine without an actor."""
        self.name = name
        self.health = Health(max_restarts)
        self.actor: Any = None
        self.node = ""
        self.needed = False
        self.proof: Proof | None = None
        self.gap = 0.0
        self.calibrated: tuple[tuple[int, ...], Calibration] | None = None
        self.doubts = 0
        self.busy_s = self.up_s = 0.0
        self.up_since: float | None = None
        self.tokens = 0
        self.changed = asyncio.Event()

    def kill(self) -> None:
        """End the actor, if there is one."""
        if self.up_since is not None:
            self.up_s += time.monotonic() - self.up_since
            self.up_since = None
        if self.actor is not None:
            ray.kill(self.actor)
            self.actor = None


@dataclass
class PoolState:
    """The state of a pool.

    Attributes:
        rollout: The run's rollout settings.
        spec: What every engine is started with.
        label: Part of the actors' names.
        schedule: Which engine works on which task.
        engines: All engines by name, started or not.
        published: The newest policy version; None before the first.
        losses: Engines lost to failures of their own so far.
        preemptions: Engines lost with preempted nodes so far.
        engine_changed: Set when the state of an engine changes.
        waiting: Task id -> the queue that its outcome goes to.
        sharing: How engines share their devices with learner ranks; None where they do not.
        spare: The process that takes the place of the next engine that is lost; None without rollout.spare.
    """

    rollout: RolloutConfig
    spec: EngineSpec
    label: str
    schedule: Schedule
    engines: dict[str, PooledEngine]
    published: Published | None = None
    losses: int = 0
    preemptions: int = 0
    engine_changed: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: dict[int, asyncio.Queue[TaskOutcome]] = field(default_factory=dict)
    sharing: Sharing | None = None
    spare: Spare | None = None

    @property
    def tolerance(self) -> float:
        """Largest gap in nats between an engine's and the learner's logprobs of the probe, whatever its calibration."""
        return self.rollout.probe_tolerance or TOLERANCE[self.spec.dtype]

    def limit(self, engine: PooledEngine, probe: tuple[int, ...], learner: np.ndarray) -> float:
        """Return the largest gap that an engine may have on a probe of which the learner computes these logprobs."""
        if self.rollout.probe_tolerance or engine.calibrated is None or engine.calibrated[0] != probe:
            return self.tolerance
        return engine.calibrated[1].limit(self.spec.dtype, learner)

    @property
    def serving(self) -> int:
        """Number of engines that serve."""
        return sum(engine.health.serving for engine in self.engines.values())

    @property
    def needed(self) -> int:
        """Number of engines that the pool needs."""
        return sum(engine.needed for engine in self.engines.values())

    def dispatch(self) -> None:
        """Send waiting tasks to engines that take them; a send that fails shows in the engine's next report."""
        # Only the engines that get tasks are visited: an event must not cost more where there are many.
        for name, tasks in self.schedule.dispatch(time.monotonic()).items():
            self.engines[name].actor.submit.remote(tasks)
            self.engines[name].changed.set()

    def deliver(self, outcome: TaskOutcome) -> None:
        """Hand an outcome to whoever waits for it; drop it when the task was cancelled."""
        queue = self.waiting.pop(outcome.task.id, None)
        if queue is not None:
            queue.put_nowait(outcome)

    def hold(self, engine: PooledEngine, held: bool) -> None:
        """Hold an engine that is up, so that it gets no new tasks, or release it."""
        if self.schedule.is_up(engine.name):
            self.schedule.hold(engine.name, held)

    def wake(self, engine: PooledEngine) -> None:
        """Make the engine's supervisor react to a change now, also while it waits for a report."""
        engine.changed.set()
        if self.schedule.load(engine.name):
            engine.actor.wake.remote()

    def missing_resources(self) -> str:
        """Describe what the cluster lacks for one more engine; empty when that cannot be why engines are not up."""
        # What a bundle holds is not free, and an engine of a bundle waits for its turn.
        if self.sharing or not any(engine.health.state is State.STARTING for engine in self.engines.values()):
            return ""
        free = ray.available_resources()
        wanted = {"CPU": self.spec.cpus, "GPU": self.spec.gpus}
        lacking = {name: free.get(name, 0.0) for name, need in wanted.items() if need > free.get(name, 0.0)}
        return f"; an engine needs {wanted}, free now: {lacking}" if lacking else ""


async def event_set(event: asyncio.Event, limit_s: float) -> bool:
    """Wait until the event is set; return whether that happened within `limit_s` seconds."""
    try:
        await asyncio.wait_for(event.wait(), limit_s)
    except TimeoutError:
        return False
    return True
