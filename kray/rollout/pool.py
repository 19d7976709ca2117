"""A pool of engines on Ray: hands out rollout tasks, streams their results back, and outlives the death of engines.

One coroutine per engine (`_tend`) brings its actor up, proves its weights, moves work and reports, and starts anew when
the actor is lost; Schedule decides who works on what, Health what an engine may do. No engine serves weights that it has
not proved: its logprobs of a probe must agree with the learner's, else it is killed. Every remote call has a deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from kray.config.schema import RolloutConfig
from kray.records import KrayError, Rollout, RolloutTask
from kray.rollout.engine import Engine, EngineSpec, Report
from kray.rollout.health import Health, State
from kray.rollout.schedule import Schedule
from kray.rollout.transfer import Proof

POLL_S = 2.0  # how long a busy engine is listened to at a time
HEARTBEAT_S = 15.0  # an idle engine is asked whether it lives
WORRY_S = 30.0  # how often a long wait says what it waits for
SILENCE_S = 60.0  # an engine that does not even answer a poll for so long is taken for dead
EngineActor: Any = ray.remote(concurrency_groups={"orders": 1})(Engine)  # type: ignore[call-overload]
PROBE_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # nats, mean over the probe's tokens


@dataclass(frozen=True, slots=True)
class Published:
    """A policy version: where its weights are and what the learner thinks of the probe.

    weights: reference to FlatWeights in the object store. probe: token ids; logprobs (P - 1,) of probe[1:].
    """

    version: int
    weights: Any
    probe: tuple[int, ...]
    logprobs: np.ndarray


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rollout task ended: with rollouts, or with the reason why there are none."""

    task: RolloutTask
    rollouts: list[Rollout]
    failure: str = ""


class EngineLost(Exception):
    """An engine died, hung or served wrong weights; its actor is to be replaced."""


class _Engine:
    """What the pool knows of one engine."""

    def __init__(self, name: str, max_restarts: int):
        self.name = name
        self.health = Health(max_restarts)
        self.actor: Any = None
        self.proof: Proof | None = None  # its answer to the newest weights
        self.gap = 0.0  # nats between engine and learner at its last proof
        self.wake = asyncio.Event()  # there is work for it, or a new version


class Pool:
    """Start with `start`, then `publish` a version, then `open` a session for tasks; `close` at the end."""

    def __init__(self, rollout: RolloutConfig, spec: EngineSpec, label: str, log: Callable[[str], None] = print):
        self.rollout, self.spec, self.label, self.log = rollout, spec, label, log
        self.tolerance = rollout.probe_tolerance or PROBE_TOLERANCE[spec.dtype]
        self.schedule = Schedule(rollout.max_attempts)
        self.engines = [_Engine(f"engine-{i}", rollout.max_restarts) for i in range(rollout.engines)]
        self.published: Published | None = None
        self.deaths = 0
        self.busy_s = 0.0  # engine-seconds of stepping since the pool started
        self._outcomes: dict[int, asyncio.Queue[Outcome]] = {}  # task id -> the run that waits for it
        self._changed = asyncio.Event()  # an engine changed its state
        self._tenders: list[asyncio.Task] = []

    # -- what the driver calls ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to bring the engines up; returns at once."""
        self._tenders = [asyncio.create_task(self._tend(engine)) for engine in self.engines]

    async def publish(self, published: Published) -> float:
        """Makes every live engine serve this version; returns the largest gap to the learner, in nats.

        Returns when every engine that served has proved the version or died, and at least one serves it. Not while tasks
        run. Raises KrayError when no engine serves it before rollout.start_timeout_s, or none is left.
        """
        self.published = published
        live = [engine for engine in self.engines if engine.health.state is State.SERVING]
        for engine in live:
            engine.health.outdated()
            lost = self.schedule.load(engine.name)
            assert not lost, f"{lost} rollouts were running when version {published.version} was published"
            self.schedule.engine_down(engine.name)
        for engine in self.engines:  # also those that came up before there was anything to serve
            engine.wake.set()
        await self._until(lambda: self.serving > 0 and all(e.health.state is not State.STALE for e in live))
        return max(engine.gap for engine in self.engines if engine.health.state is State.SERVING)

    def open(self) -> Session:
        """A session in which tasks can be submitted while others run."""
        return Session(self)

    async def close(self) -> None:
        """Kills the engines; what they held is dropped."""
        for tender in self._tenders:
            tender.cancel()
        await asyncio.gather(*self._tenders, return_exceptions=True)
        for engine in self.engines:
            self._kill(engine)

    @property
    def serving(self) -> int:
        return sum(engine.health.state is State.SERVING for engine in self.engines)

    # -- one engine's life --------------------------------------------------------------------------------------------

    async def _tend(self, engine: _Engine) -> None:
        """Keeps one engine alive and at work, over as many actors as its restarts allow."""
        while True:
            try:
                await self._bring_up(engine)
                while True:
                    await self._serve_newest(engine)
                    await self._work(engine)
            except EngineLost as loss:
                delay_s = self._bury(engine, str(loss))
                if delay_s is None:
                    return
                await asyncio.sleep(delay_s)

    async def _bring_up(self, engine: _Engine) -> None:
        """A new actor for the engine, with its model loaded."""
        options = {
            "name": f"kray-{self.label}-{engine.name}-{engine.health.restarts}",
            "num_cpus": self.spec.cpus,
            "num_gpus": self.spec.gpus,
            "max_concurrency": 4,
            "runtime_env": {"env_vars": self.spec.environment()},
        }
        try:
            engine.actor = EngineActor.options(**options).remote(self.spec)
        except ValueError as error:  # the name of an actor that is still dying
            raise EngineLost(str(error)) from error
        await self._placed(engine)
        await self._call(engine, "start", self.rollout.start_timeout_s)
        engine.health.started()
        self._changed.set()

    async def _placed(self, engine: _Engine) -> None:
        """Waits until the cluster has room for the actor, however long its autoscaler takes; says so now and then.

        `publish` and `Session.next` bound the wait where no engine serves at all.
        """
        waiting = asyncio.ensure_future(_value(engine.actor.__ray_ready__.remote()))
        started = time.monotonic()
        try:
            while not (await asyncio.wait({waiting}, timeout=WORRY_S))[0]:
                waited_s = time.monotonic() - started
                self.log(f"pool: {engine.name} is not placed after {waited_s:.0f} s{self._shortage()}")
            waiting.result()
        except RayError as error:
            raise EngineLost(f"start: {_last_line(error)}") from error
        finally:
            waiting.cancel()

    async def _serve_newest(self, engine: _Engine) -> None:
        """Holds the engine back until it has proved the newest version. Raises EngineLost."""
        while engine.health.state is not State.SERVING:
            while self.published is None:
                await self._wait(engine.wake, HEARTBEAT_S)
            published = self.published
            call = ("update", self.rollout.sync_timeout_s, published.version, published.weights, list(published.probe))
            engine.proof = await self._call(engine, *call)
            engine.gap = float(np.abs(engine.proof.logprobs - published.logprobs).mean())
            if not engine.gap <= self.tolerance:
                raise EngineLost(
                    f"its weights of version {published.version} are not the learner's: logprobs of the probe differ by "
                    f"{engine.gap:.1e} nats, rollout.probe_tolerance is {self.tolerance:.0e}"
                )
            if published is self.published:
                engine.health.proved(published.version)
                # With one engine there is nobody to share with: all work at once keeps its batches reproducible.
                self.schedule.engine_up(engine.name, self.spec.max_sequences if len(self.engines) > 1 else None)
                self._changed.set()
                self._dispatch()

    async def _work(self, engine: _Engine) -> None:
        """One round: collect what the engine has finished, or wait until there is something for it to do."""
        engine.wake.clear()
        if not self.schedule.load(engine.name) and await self._wait(engine.wake, HEARTBEAT_S):
            return  # work or a version has come
        report: Report = await self._call(
            engine, "collect", SILENCE_S, POLL_S if self.schedule.load(engine.name) else 0.0
        )
        self._take(engine, report)
        late = self.schedule.overdue(engine.name, time.monotonic())
        if late:
            raise EngineLost(
                f"{len(late)} tasks ran out of time, first prompt {late[0].prompt_id} (rollout.task_timeout_s is "
                f"{late[0].timeout_s:g})"
            )

    def _take(self, engine: _Engine, report: Report) -> None:
        self.busy_s += report.busy_s
        for task_id, rollouts in report.finished:
            task = self.schedule.done(task_id, engine.name, time.monotonic())
            if task is None:
                continue  # cancelled meanwhile
            versions = {version for rollout in rollouts for version, _, _ in rollout.policy_versions}
            assert versions == {engine.health.version}, (
                f"{engine.name} served {versions}, proved {engine.health.version}"
            )
            self._deliver(Outcome(task, rollouts))
        for task_id, reason in report.refused:
            task = self.schedule.refused(task_id, engine.name)
            if task is not None:
                self._deliver(Outcome(task, [], reason))
        self._dispatch()

    def _bury(self, engine: _Engine, reason: str) -> float | None:
        """The engine is dead: its work goes to others. Seconds until it may start anew, or None."""
        self.deaths += 1
        engine.health.died(reason)
        self._kill(engine)
        held = self.schedule.load(engine.name)
        for task in self.schedule.engine_down(engine.name):
            self._deliver(Outcome(task, [], f"failed {self.rollout.max_attempts} times, at last: {reason}"))
        delay_s = engine.health.restart()
        fate = "it is not started again" if delay_s is None else "starting anew"
        self.log(f"pool: {engine.name} lost with {held} rollouts in hand, which go to other engines; {fate}: {reason}")
        self._changed.set()
        self._dispatch()
        return delay_s

    # -- small steps --------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Sends waiting tasks to engines with room. A send that fails shows in the engine's next report."""
        orders = self.schedule.dispatch(time.monotonic())
        for engine in self.engines:
            if engine.name in orders:
                engine.actor.submit.remote(orders[engine.name])
                engine.wake.set()

    def _deliver(self, outcome: Outcome) -> None:
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

    async def _call(self, engine: _Engine, method: str, limit_s: float, *args: Any) -> Any:
        """A remote call with a deadline; whatever goes wrong is the loss of the engine."""
        try:
            return await asyncio.wait_for(getattr(engine.actor, method).remote(*args), limit_s)
        except TimeoutError:
            raise EngineLost(f"no answer to {method} within {limit_s:g} s") from None
        except RayError as error:
            raise EngineLost(f"{method}: {_last_line(error)}") from error

    async def _wait(self, event: asyncio.Event, limit_s: float) -> bool:
        """Whether the event came in time."""
        try:
            await asyncio.wait_for(event.wait(), limit_s)
        except TimeoutError:
            return False
        return True

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Waits for a state of the pool, and says every now and then what it is waiting for."""
        started = time.monotonic()
        while not reached():
            self._fail_if_none_left()
            waited = time.monotonic() - started
            if waited > self.rollout.start_timeout_s:
                raise KrayError(f"pool: {self._standing()} after {waited:.0f} s (rollout.start_timeout_s)")
            self._changed.clear()
            if not await self._wait(self._changed, WORRY_S):
                self.log(f"pool: {self._standing()} after {time.monotonic() - started:.0f} s")

    def _standing(self) -> str:
        states = [engine.health.state for engine in self.engines]
        counts = ", ".join(f"{states.count(state)} {state.value}" for state in State if state in states)
        return f"{self.serving} of {len(states)} engines serve ({counts}){self._shortage()}"

    def _shortage(self) -> str:
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

    def _kill(self, engine: _Engine) -> None:
        if engine.actor is not None:
            ray.kill(engine.actor)
            engine.actor = None


class Session:
    """Work that belongs together: submitted bit by bit, and cancelled together when its `with` block is left early."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self._ended: asyncio.Queue[Outcome] = asyncio.Queue()
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
        self._pool.schedule.submit(tasks)
        self._pool._dispatch()

    async def next(self) -> Outcome:
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


async def _value(reference: Any) -> Any:
    return await reference


def _last_line(error: BaseException) -> str:
    """Of a remote traceback: the line that says what happened."""
    return str(error).strip().splitlines()[-1][:300]
