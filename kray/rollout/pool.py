"""A pool of engines on Ray: hands out rollout tasks, streams their results back, and outlives the death of engines.

Each engine has its EngineSupervisor, which starts an actor, proves its weights, moves work and reports, and starts anew when
the actor is lost; Schedule decides who works on what, Health what an engine may do, Autoscaler how many are needed. No engine
takes work with weights that it has not proved: its logprobs of a probe must agree with the learner's, else it is killed.
Work that is under way when new weights are published goes on with them. Every remote call has a deadline.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import ray

from kray.config.schema import RolloutConfig
from kray.errors import KrayError
from kray.records import RolloutTask
from kray.rollout.autoscaling import Autoscaler
from kray.rollout.engine_spec import EngineSpec
from kray.rollout.engine_supervisor import POLL_S, WORRY_S, EngineSupervisor, arrives
from kray.rollout.health import State
from kray.rollout.outcome import TaskOutcome
from kray.rollout.scheduler import Schedule

logger = logging.getLogger(__name__)

SIZE_S = 1.0  # how often the number of engines is thought over
PROBE_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # nats, mean over the probe's tokens


@dataclass(frozen=True, slots=True)
class Published:
    """A policy version: where its weights are and what the learner thinks of the probe.

    weights: reference to FlatWeights in the object store; checksum: of them. probe: token ids. logprobs: (P - 1,) of
    probe[1:], or a future of them, so that learner and engines can compute side by side.
    """

    version: int
    weights: Any
    checksum: str
    probe: tuple[int, ...]
    logprobs: np.ndarray | asyncio.Future


class Pool:
    """Start with `start`, then `publish` a version, then `open` a session for tasks; `close` at the end."""

    def __init__(self, rollout: RolloutConfig, spec: EngineSpec, label: str):
        self.rollout, self.spec, self.label = rollout, spec, label
        self.tolerance = rollout.probe_tolerance or PROBE_TOLERANCE[spec.dtype]
        self.schedule = Schedule(rollout.max_attempts)
        self.engines = [EngineSupervisor(self, f"engine-{i}", rollout.max_restarts) for i in range(rollout.engines)]
        least = rollout.engines if rollout.min_engines is None else rollout.min_engines
        self.sizing = Autoscaler(least, rollout.engines, spec.max_sequences, rollout.idle_s)
        self._named = {engine.name: engine for engine in self.engines}
        self._sized = -1  # engines that were needed when that was last thought over
        self.published: Published | None = None
        self.deaths = self.preemptions = 0
        self.up_s = 0.0  # engine-seconds of engines that are not up any more
        self._shared = (0.0, 0.0)  # engine-seconds (of stepping, up) when busy_share was last asked
        self._outcomes: dict[int, asyncio.Queue[TaskOutcome]] = {}  # task id -> the run that waits for it
        self.task_ids = count()  # for whoever makes tasks: an id is used once in the life of the engines
        self.changed = asyncio.Event()  # an engine changed its state
        self._tenders: list[asyncio.Task] = []

    # -- what the driver calls ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to bring the engines up; returns at once. Nothing when they have been begun before."""
        if self._tenders:
            return
        self._resize()
        self._tenders = [asyncio.create_task(engine.tend()) for engine in self.engines]
        self._tenders.append(asyncio.create_task(self._keep_size()))

    async def publish(self, published: Published) -> float:
        """Makes every live engine serve this version; returns the largest gap to the learner, in nats.

        Returns when every engine that served has proved the version or died, and at least one serves it; with no engine
        (rollout.min_engines 0) the gap is NaN, and those to come will prove it. Tasks that run go on, with the new weights.
        Raises KrayError when no engine serves it before rollout.start_timeout_s, or none is left.
        """
        self.published = published
        live = [engine for engine in self.engines if engine.health.state is State.SERVING]
        for engine in live:
            engine.health.mark_stale()
            self._hold(engine, True)
        for engine in self.engines:  # also those that came up before there was anything to serve
            engine.rouse()

        def served() -> bool:
            enough = self.serving > 0 or self.sizing.min_engines == 0
            return enough and all(engine.health.state is not State.STALE for engine in live)

        await self._until(served)
        gaps = [engine.gap for engine in self.engines if engine.health.state is State.SERVING]
        return max(gaps, default=float("nan"))

    def open(self, priority: int = 0) -> Session:
        """A session in which tasks can be submitted while others run. priority: of its tasks, the lower first."""
        return Session(self, priority)

    def busy_share(self) -> float:
        """Of the time that engines were up since the last call: the share in which they generated; 0 without any."""
        now = time.monotonic()
        up_s = self.up_s + sum(now - engine.up_since for engine in self.engines if engine.up_since is not None)
        busy_s = sum(engine.busy_s for engine in self.engines)
        (busy_before, up_before), self._shared = self._shared, (busy_s, up_s)
        return min(1.0, (busy_s - busy_before) / (up_s - up_before)) if up_s > up_before else 0.0

    async def close(self) -> None:
        """Kills the engines; what they held is dropped."""
        for tender in self._tenders:
            tender.cancel()
        await asyncio.gather(*self._tenders, return_exceptions=True)
        for engine in self.engines:
            engine.kill()

    @property
    def serving(self) -> int:
        return sum(engine.health.state is State.SERVING for engine in self.engines)

    # -- how many engines ---------------------------------------------------------------------------------------------

    async def _keep_size(self) -> None:
        while True:
            await asyncio.sleep(SIZE_S)
            self._resize()

    def _resize(self) -> None:
        """Says which engines are needed: more at once, fewer when they were too many for rollout.idle_s."""
        rollouts = self.schedule.rollouts
        wanted = self.sizing.desired(rollouts, time.monotonic())
        alive = [engine for engine in self.engines if engine.health.state is not State.GONE]
        needed = [engine for engine in alive if engine.needed]
        # Of those that may rest, first the ones that would come up soonest; of the others, the least busy.
        spare = sorted((e for e in alive if not e.needed), key=lambda e: e.health.state is State.RESTING)
        for engine in spare[: max(0, wanted - len(needed))]:
            engine.needed = True
            self._hold(engine, engine.health.state is not State.SERVING)
            engine.rouse()
        needed.sort(key=lambda e: (e.health.state is State.SERVING, self.schedule.load(e.name)))
        for engine in needed[: max(0, len(needed) - wanted)]:
            engine.needed = False
            self._hold(engine, True)
            engine.rouse()
        if wanted > len(needed) and spare and self.sizing.min_engines < self.sizing.max_engines:
            logger.info(f"pool: {wanted} engines wanted for {rollouts} rollouts, {len(needed)} until now")
        self._sized = wanted
        self.dispatch()

    def more_work(self) -> None:
        """Tasks have been added: sends them out, after thinking engines over where more are wanted."""
        if self.sizing.desired(self.schedule.rollouts, time.monotonic()) > self._sized:
            self._resize()
        else:
            self.dispatch()

    def _hold(self, engine: EngineSupervisor, held: bool) -> None:
        if self.schedule.is_up(engine.name):
            self.schedule.hold(engine.name, held)

    # -- small steps --------------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Sends waiting tasks to engines with room. A send that fails shows in the engine's next report."""
        orders = self.schedule.dispatch(time.monotonic())
        if not orders:
            return
        for name, tasks in orders.items():  # not the engines: an event must not cost more where there are many
            self._named[name].actor.submit.remote(tasks)
            self._named[name].wake.set()

    def deliver(self, outcome: TaskOutcome) -> None:
        waiting = self._outcomes.pop(outcome.task.id, None)
        if waiting is not None:
            waiting.put_nowait(outcome)

    def _cancel(self, task_ids: set[int]) -> None:
        for task_id in task_ids:
            self._outcomes.pop(task_id, None)
        orders = self.schedule.cancel(task_ids)
        for engine in self.engines:
            if engine.name in orders:
                engine.actor.cancel.remote(orders[engine.name])
                engine.actor.wake.remote()

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Waits for a state of the pool, and says every now and then what it is waiting for."""
        started = time.monotonic()
        while not reached():
            self._fail_if_none_left()
            waited = time.monotonic() - started
            if waited > self.rollout.start_timeout_s:
                raise KrayError(f"pool: {self._standing()} after {waited:.0f} s (rollout.start_timeout_s)")
            self.changed.clear()
            if not await arrives(self.changed, WORRY_S):
                logger.info(f"pool: {self._standing()} after {time.monotonic() - started:.0f} s")

    def _standing(self) -> str:
        states = [engine.health.state for engine in self.engines]
        counts = ", ".join(f"{states.count(state)} {state.value}" for state in State if state in states)
        return f"{self.serving} of {len(states)} engines serve ({counts}){self.shortage()}"

    def shortage(self) -> str:
        """What the cluster lacks for one more engine, where that can be the reason for the wait."""
        if not any(engine.health.state is State.STARTING for engine in self.engines):
            return ""
        free = ray.available_resources()
        wanted = {"CPU": self.spec.cpus, "GPU": self.spec.gpus}
        lacking = {name: need for name, need in wanted.items() if need > free.get(name, 0.0)}
        return (
            f"; an engine asks for {wanted}, free now: { ({n: free.get(n, 0.0) for n in lacking}) }" if lacking else ""
        )

    def _fail_if_none_left(self) -> None:
        for tender in self._tenders:
            if tender.done() and not tender.cancelled() and tender.exception() is not None:
                tender.result()  # raises: a defect of the pool itself, not of an engine
        if all(engine.health.state is State.GONE for engine in self.engines):
            reasons = "; ".join(f"{engine.name}: {engine.health.reason}" for engine in self.engines)
            raise KrayError(
                f"pool: no engine is left, each died more than {self.rollout.max_restarts} times ({reasons})"
            )


class Session:
    """Work that belongs together: submitted bit by bit, and cancelled together when its `with` block is left early."""

    def __init__(self, pool: Pool, priority: int):
        self._pool, self.priority = pool, priority
        self._ended: asyncio.Queue[TaskOutcome] = asyncio.Queue()
        self.left: set[int] = set()  # ids of tasks whose outcome has not been handed out

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool._cancel(self.left)
        self.left = set()

    def submit(self, tasks: Sequence[RolloutTask]) -> None:
        """Adds work. Tasks of one call are dispatched together."""
        self.left |= {task.id for task in tasks}
        self._pool._outcomes.update({task.id: self._ended for task in tasks})
        self._pool.schedule.submit(tasks, self.priority)
        self._pool.more_work()

    async def next(self) -> TaskOutcome:
        """The next task that ends; only while some are left.

        Raises KrayError when no engine is left to run it, or none has served for rollout.start_timeout_s.
        """
        pool, served = self._pool, time.monotonic()
        while True:
            try:
                outcome = await asyncio.wait_for(self._ended.get(), POLL_S)
            except TimeoutError:
                pool._fail_if_none_left()
                now = time.monotonic()
                served = now if pool.serving else served
                if now - served > pool.rollout.start_timeout_s:
                    raise KrayError(
                        f"pool: {pool._standing()} for {now - served:.0f} s (rollout.start_timeout_s)"
                    ) from None
                continue
            self.left.discard(outcome.task.id)
            return outcome
