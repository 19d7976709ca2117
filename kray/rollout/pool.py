"""A pool of engines on Ray: distributes rollout tasks, streams their results, and survives the loss of engines.

Each engine has an EngineSupervisor, which starts an actor, proves its weights, collects its reports, and starts another actor
when it is lost. Schedule decides which engine works on what, Health what an engine may do, Autoscaler how many are needed.

- No engine takes tasks with weights that it has not proved: its logprobs of a probe must agree with the learner's, else its
  actor is killed. Tasks that run when new weights are published continue with them.
- Every submitted task ends in exactly one outcome, unless its session is left early.
- Every remote call has a deadline.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from itertools import count

from kray.config.schema import RolloutConfig
from kray.errors import KrayError
from kray.records import RolloutTask
from kray.rollout.autoscaling import Autoscaler
from kray.rollout.engine_spec import EngineSpec
from kray.rollout.engine_supervisor import POLL_S, STALL_WARNING_S, EngineSupervisor
from kray.rollout.health import State
from kray.rollout.outcome import TaskOutcome
from kray.rollout.pool_state import PooledEngine, PoolState, Published, event_set
from kray.rollout.scheduler import Schedule
from kray.rollout.spare import spare_of

logger = logging.getLogger(__name__)

# Seconds between two decisions on the number of engines.
RESIZE_S = 1.0


class Pool:
    """The engines of a run.

    Call `start`, then `publish` a version, then `open` sessions that submit tasks; `close` at the end.

    Attributes:
        state: What the pool shares with the supervisors of its engines.
        autoscaler: Decides how many engines are needed.
        supervisors: One for each engine.
        task_ids: Numbers tasks; an id is used once in the life of the pool, whoever makes the tasks.
    """

    def __init__(self, rollout: RolloutConfig, spec: EngineSpec, label: str):
        """Create a pool; no engine is started.

        Args:
            rollout: The run's rollout settings.
            spec: What every engine is started with.
            label: Part of the actors' names.
        """
        names = [f"engine-{i}" for i in range(rollout.engines)]
        engines = {name: PooledEngine(name, rollout.max_restarts) for name in names}
        self.state = PoolState(rollout, spec, label, Schedule(rollout.max_attempts), engines)
        self.state.spare = spare_of(spec, label) if rollout.spare else None
        min_engines = rollout.engines if rollout.min_engines is None else rollout.min_engines
        self.autoscaler = Autoscaler(min_engines, rollout.engines, spec.max_sequences, rollout.idle_s)
        self.supervisors = [EngineSupervisor(self.state, engine) for engine in engines.values()]
        self.task_ids = count()
        # Engines that were desired when the pool was last resized.
        self._last_desired = -1
        # Engine-seconds (stepping, up) at the last call of `busy_share`.
        self._last_shared = (0.0, 0.0)
        self._background: list[asyncio.Task] = []

    # -- what the driver reads ----------------------------------------------------------------------------------------

    @property
    def schedule(self) -> Schedule:
        """Which engine works on which task."""
        return self.state.schedule

    @property
    def engines(self) -> list[PooledEngine]:
        """All engines, started or not."""
        return list(self.state.engines.values())

    @property
    def published(self) -> Published | None:
        """The newest policy version; None before the first."""
        return self.state.published

    @property
    def serving(self) -> int:
        """Number of engines that serve."""
        return self.state.serving

    @property
    def losses(self) -> int:
        """Engines lost to failures of their own so far."""
        return self.state.losses

    @property
    def preemptions(self) -> int:
        """Engines lost with preempted nodes so far."""
        return self.state.preemptions

    # -- what the driver calls ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to start engines and return at once; does nothing when called again."""
        if self._background:
            return
        self.resize()
        self._background = [asyncio.create_task(supervisor.run()) for supervisor in self.supervisors]
        self._background.append(asyncio.create_task(self._keep_size()))

    async def publish(self, published: Published) -> float:
        """Make every serving engine serve a new version.

        Tasks that run continue with the new weights.

        Args:
            published: The version.

        Returns:
            The largest gap between an engine's and the learner's logprobs of the probe, in nats. Returns when every engine
            that served has proved the version or was lost, and at least one serves it. With no engine
            (rollout.min_engines 0) the gap is NaN, and engines that start later prove the version.

        Raises:
            KrayError: No engine serves it within rollout.start_timeout_s, or none is left.
        """
        self.state.published = published
        to_update = [engine for engine in self.engines if engine.health.serving]
        for engine in to_update:
            engine.health.mark_stale()
            self.state.hold(engine, True)
        for engine in self.engines:  # includes those that started before there was a version
            self.state.wake(engine)

        def all_serve() -> bool:
            enough = self.serving > 0 or self.autoscaler.min_engines == 0
            return enough and all(engine.health.state is not State.STALE for engine in to_update)

        await self._wait_until(all_serve)
        return max((engine.gap for engine in self.engines if engine.health.serving), default=float("nan"))

    def open(self, priority: int = 0) -> Session:
        """Return a session for tasks.

        Args:
            priority: Priority of its tasks, the lower first.
        """
        return Session(self, priority)

    async def wait_until_all_serve(self) -> None:
        """Wait until every engine of the pool serves.

        Raises:
            KrayError: That takes longer than rollout.start_timeout_s, or no engine is left.
        """
        await self._wait_until(lambda: self.serving == len(self.state.engines))

    def busy_share(self) -> float:
        """Return the share of the engines' time since the last call in which they were stepping; 0 if none was up."""
        now = time.monotonic()
        up_s = sum(e.up_s + (now - e.up_since if e.up_since is not None else 0.0) for e in self.engines)
        busy_s = sum(engine.busy_s for engine in self.engines)
        (busy_before, up_before), self._last_shared = self._last_shared, (busy_s, up_s)
        return min(1.0, (busy_s - busy_before) / (up_s - up_before)) if up_s > up_before else 0.0

    async def close(self) -> None:
        """Kill the engines and drop their tasks."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for engine in self.engines:
            engine.kill()
        if self.state.spare is not None:
            self.state.spare.close()

    # -- how many engines ---------------------------------------------------------------------------------------------

    async def _keep_size(self) -> None:
        while True:
            await asyncio.sleep(RESIZE_S)
            self.resize()

    def resize(self) -> None:
        """Decide which engines are needed and dispatch tasks to those that serve."""
        rollouts = self.schedule.rollouts
        desired = self.autoscaler.desired(rollouts, time.monotonic())
        usable = [engine for engine in self.engines if engine.health.state is not State.GONE]
        needed = [engine for engine in usable if engine.needed]
        # Of the unneeded engines take first those that serve soonest; of the needed ones release first the least busy.
        spare = sorted((e for e in usable if not e.needed), key=lambda e: e.health.state is State.RESTING)
        for engine in spare[: max(0, desired - len(needed))]:
            self._set_needed(engine, True)
        needed.sort(key=lambda e: (e.health.serving, self.schedule.load(e.name)))
        for engine in needed[: max(0, len(needed) - desired)]:
            self._set_needed(engine, False)
        if desired > len(needed) and spare and self.autoscaler.min_engines < self.autoscaler.max_engines:
            logger.info(f"pool: scaling from {len(needed)} to {desired} engines for {rollouts} rollouts")
        self._last_desired = desired
        self.state.dispatch()

    def _set_needed(self, engine: PooledEngine, needed: bool) -> None:
        engine.needed = needed
        self.state.hold(engine, not (needed and engine.health.serving))
        self.state.wake(engine)

    # -- tasks --------------------------------------------------------------------------------------------------------

    def submit(self, tasks: Sequence[RolloutTask], priority: int, outcomes: asyncio.Queue[TaskOutcome]) -> None:
        """Accept tasks and dispatch them, after adding engines where more are needed.

        Args:
            tasks: The tasks.
            priority: Their priority, the lower first.
            outcomes: Where their outcomes go.
        """
        self.state.waiting.update({task.id: outcomes for task in tasks})
        self.schedule.submit(tasks, priority)
        if self.autoscaler.desired(self.schedule.rollouts, time.monotonic()) > self._last_desired:
            self.resize()
        else:
            self.state.dispatch()

    def cancel(self, task_ids: set[int]) -> None:
        """Drop tasks; no outcome is delivered for them."""
        for task_id in task_ids:
            self.state.waiting.pop(task_id, None)
        for name, dropped in self.schedule.cancel(task_ids).items():
            actor = self.state.engines[name].actor
            actor.cancel.remote(dropped)
            actor.wake.remote()

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def _wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait for a state of the pool and log every now and then what is missing."""
        started = time.monotonic()
        while not reached():
            self.raise_if_none_left()
            self.raise_if_stalled(time.monotonic() - started)
            self.state.engine_changed.clear()
            if not await event_set(self.state.engine_changed, STALL_WARNING_S):
                logger.info(f"pool: {self.standing()} after {time.monotonic() - started:.0f} s")

    def standing(self) -> str:
        """Describe the engines' states and what the cluster lacks: "1 of 2 engines serve (1 serving, 1 starting)"."""
        states = [engine.health.state for engine in self.engines]
        counts = ", ".join(f"{states.count(state)} {state.value}" for state in State if state in states)
        return f"{self.serving} of {len(states)} engines serve ({counts}){self.state.missing_resources()}"

    def raise_if_stalled(self, waited_s: float) -> None:
        """Raise KrayError when a wait for engines has taken longer than rollout.start_timeout_s."""
        if waited_s > self.state.rollout.start_timeout_s:
            raise KrayError(f"pool: {self.standing()} after {waited_s:.0f} s (rollout.start_timeout_s)")

    def raise_if_none_left(self) -> None:
        """Raise KrayError when every engine has used up its restarts, or the error of a supervisor that failed itself."""
        for task in self._background:
            if task.done() and not task.cancelled() and task.exception() is not None:
                task.result()
        if all(engine.health.state is State.GONE for engine in self.engines):
            reasons = "; ".join(f"{engine.name}: {engine.health.reason}" for engine in self.engines)
            restarts = self.state.rollout.max_restarts
            raise KrayError(f"pool: no engine is left, each was lost after {restarts} restarts ({reasons})")


class Session:
    """Tasks that belong together; those unfinished are cancelled when the session's `with` block is left.

    Attributes:
        priority: Priority of its tasks, the lower first.
        left: Ids of tasks whose outcome `next` has not returned.
    """

    def __init__(self, pool: Pool, priority: int):
        """Create a session without tasks; see `Pool.open`."""
        self._pool, self.priority = pool, priority
        self._outcomes: asyncio.Queue[TaskOutcome] = asyncio.Queue()
        self.left: set[int] = set()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.cancel(self.left)
        self.left = set()

    def submit(self, tasks: Sequence[RolloutTask]) -> None:
        """Add tasks; those of one call are dispatched together."""
        self.left |= {task.id for task in tasks}
        self._pool.submit(tasks, self.priority, self._outcomes)

    async def next(self) -> TaskOutcome:
        """Wait for the next task that ends; call it only while tasks are left.

        Raises:
            KrayError: No engine is left, or none has served for rollout.start_timeout_s.
        """
        pool, last_served = self._pool, time.monotonic()
        while True:
            try:
                outcome = await asyncio.wait_for(self._outcomes.get(), POLL_S)
            except TimeoutError:
                pool.raise_if_none_left()
                now = time.monotonic()
                last_served = now if pool.serving else last_served
                pool.raise_if_stalled(now - last_served)
                continue
            self.left.discard(outcome.task.id)
            return outcome
