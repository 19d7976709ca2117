"""Runs one engine of a pool, over as many Ray actors as it takes.

`run` starts an actor, proves its weights, collects its reports, stops it when it is not needed, and starts another when it
is lost. Health holds what the engine may do; the pool's schedule holds what it works on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from kray.cluster.process_identity import is_stopped
from kray.rollout.health import State
from kray.rollout.outcome import EngineReport, TaskOutcome
from kray.rollout.pool_state import PooledEngine, PoolState, Published, event_set
from kray.rollout.receiving_engine import EngineActor
from kray.rollout.replies import last_line, value_of, was_preempted, while_alive, within
from kray.rollout.weight_loading import WeightsUnavailable, learned, load
from kray.weight_sync.proof import Proof
from kray.weight_sync.tolerance import Calibration, mean_gap

logger = logging.getLogger(__name__)

# Unfinished rollouts below which an engine is sent more, as a multiple of those that it generates at a time: enough that it
# never waits for work, few enough that work can still go to whichever engine is free.
CAPACITY_BATCHES = 2.0
# Seconds for which one call of `collect` waits in a busy engine.
POLL_S = 2.0
# Seconds between two calls of `collect` that check an idle engine.
HEARTBEAT_S = 15.0
# Seconds between two checks whether an engine that is being placed is still needed.
PLACEMENT_POLL_S = 1.0
# Seconds between two log lines about a long wait.
STALL_WARNING_S = 30.0
# Seconds without a reply to `collect` or `ping`, which wait for no computation, after which an engine counts as lost.
RESPONSE_TIMEOUT_S = 30.0
# Methods that load new weights, which take long: meanwhile pings tell whether the engine is alive.
LOADING = ("update", "receive")
# Seconds between an answer to a ping and the next one, while an engine loads new weights.
PING_S = 5.0


class EngineLost(Exception):
    """An engine exited, hung or served wrong weights; its actor is to be replaced.

    Attributes:
        preempted: Whether its node was taken away.
    """

    def __init__(self, reason: str, preempted: bool = False):
        """Create the error from the reason, for people."""
        super().__init__(reason)
        self.preempted = preempted


class EngineSupervisor:
    """Supervises one engine of a pool.

    Attributes:
        actor_class: Of the engine's actor.
    """

    actor_class: Any = EngineActor

    def __init__(self, pool: PoolState, engine: PooledEngine):
        """Create a supervisor; `run` starts it."""
        self.pool, self.engine = pool, engine
        self._actors_started = 0
        # What identifies the process of the actor, once it has started.
        self._process: Mapping[str, Any] = {}

    async def run(self) -> None:
        """Keep the engine up and at work while it is needed; return when its restarts are used up."""
        engine = self.engine
        while True:
            try:
                if engine.health.state is State.RESTING:
                    await self._wait_until_needed()
                await self._until_startable()
                if await self._start_actor():
                    while engine.needed or self.pool.schedule.load(engine.name):
                        if self._resting_due():
                            await self._rest()
                        elif await self._serve_newest():
                            await self._collect_report()
                self._stop_idle()
            except EngineLost as loss:
                delay_s = self._handle_engine_loss(str(loss), loss.preempted)
                if delay_s is None:
                    return
                await asyncio.sleep(delay_s)

    async def _wait_until_needed(self) -> None:
        while not self.engine.needed:
            self.engine.changed.clear()
            await event_set(self.engine.changed, HEARTBEAT_S)
        self.engine.health.mark_needed()

    # An engine that shares its device (sharing_supervisor.py) waits for its turn, and sleeps when it is over.

    async def _until_startable(self) -> None:
        """Return when the engine may take memory of its device."""

    def _resting_due(self) -> bool:
        """Return whether the engine is to sleep now."""
        return False

    async def _rest(self) -> None:
        """Sleep until the engine may take memory of its device again."""

    def _placement(self) -> dict[str, Any]:
        """Return the options of the actor that say what it asks Ray for."""
        return {"num_cpus": self.pool.spec.cpus, "num_gpus": self.pool.spec.gpus}

    def _stop_idle(self) -> None:
        """Stop an engine that is not needed and holds no tasks."""
        lost = self.pool.schedule.engine_down(self.engine.name)
        assert not lost, f"{self.engine.name} was stopped with unfinished tasks"
        self.engine.health.mark_resting()
        self.engine.kill()
        logger.info(f"pool: stopped idle {self.engine.name}; {self.pool.needed} of {len(self.pool.engines)} remain")
        self.pool.engine_changed.set()

    async def _start_actor(self) -> bool:
        """Start an actor and load its model; False when the engine was no longer needed before it was placed."""
        self._process, self.engine.calibrated = {}, None
        if await self._take_spare() or await self._place_actor():
            started = await self._call("start", self.pool.rollout.start_timeout_s)
            self._process, self.engine.node = started["process"], started.get("node", "")
            self.engine.up_since = time.monotonic()
            self.engine.health.mark_started()
            self.pool.engine_changed.set()
            return True
        return False

    async def _take_spare(self) -> bool:
        """Make the pool's spare process this engine's actor; False where there is none that answers."""
        actor = None if self.pool.spare is None else self.pool.spare.take()
        if actor is None:
            return False
        self.engine.actor = actor
        try:
            await self._ping()
        except (TimeoutError, RayError) as error:
            logger.warning(f"pool: the spare process does not answer ({type(error).__name__}); starting another")
            self.engine.kill()
            return False
        actor.begin.remote()
        logger.info(f"pool: the spare process becomes {self.engine.name}")
        return True

    async def _place_actor(self) -> bool:
        """Create an actor and wait until it is placed; False when the engine was no longer needed before that."""
        spec, engine = self.pool.spec, self.engine
        options = {
            "name": f"kray-{self.pool.label}-{engine.name}-{self._actors_started}",
            **self._placement(),
            "max_concurrency": 4,
            "runtime_env": {"env_vars": spec.environment()},
        }
        self._actors_started += 1
        try:
            engine.actor = self.actor_class.options(**options).remote(spec)
        except ValueError as error:  # an actor that is still exiting has the name
            raise EngineLost(str(error)) from error
        return await self._wait_for_placement()

    async def _wait_for_placement(self) -> bool:
        """Wait until the cluster has placed the actor, however long its autoscaler takes.

        `Pool.publish` and `Session.next` bound the wait where no engine serves.

        Returns:
            False when the engine is no longer needed.
        """
        placement = asyncio.ensure_future(value_of(self.engine.actor.__ray_ready__.remote()))
        started = warned = time.monotonic()
        try:
            while not (await asyncio.wait({placement}, timeout=PLACEMENT_POLL_S))[0]:
                now = time.monotonic()
                if not self.engine.needed:
                    return False
                if now - warned >= STALL_WARNING_S:
                    warned = now
                    logger.info(
                        f"pool: {self.engine.name} not placed after {now - started:.0f} s; {self.pool.serving} of "
                        f"{self.pool.needed} needed engines serve{self.pool.missing_resources()}"
                    )
            placement.result()
            return True
        except RayError as error:
            raise EngineLost(f"start: {last_line(error)}", was_preempted(error)) from error
        finally:
            placement.cancel()

    async def _serve_newest(self) -> bool:
        """Wait until the engine has proved the newest version and may take tasks.

        Returns:
            False when it is no longer needed, or is to sleep.
        """
        engine = self.engine
        unavailable: Published | None = None
        while not engine.health.serving:
            if self._resting_due():
                return False
            published = self.pool.published
            if published is None or published is unavailable:
                if not engine.needed:
                    return False
                engine.changed.clear()
                await event_set(engine.changed, HEARTBEAT_S)
                continue
            try:
                await self._prove(published)
            except WeightsUnavailable as loss:
                unavailable = published
                logger.warning(
                    f"pool: {engine.name} cannot load version {published.version} and waits for a newer: {loss}"
                )
                continue
            if published is self.pool.published:
                self._begin_serving(published)
        return True

    def _begin_serving(self, published: Published) -> None:
        engine, schedule = self.engine, self.pool.schedule
        engine.health.mark_proved(published.version)
        if not schedule.is_up(engine.name):
            # A single engine shares with no other: giving it all work at once keeps its batches reproducible.
            capacity = round(CAPACITY_BATCHES * self.pool.spec.max_sequences) if len(self.pool.engines) > 1 else None
            schedule.engine_up(engine.name, capacity)
        schedule.hold(engine.name, not engine.needed)
        if self.pool.spare is not None and self.pool.serving >= self.pool.needed:
            # Not earlier: it would take time from engines that are starting.
            self.pool.spare.prepare()
        self.pool.engine_changed.set()
        self.pool.dispatch()

    async def _prove(self, published: Published) -> None:
        """Load weights into the engine and compare its logprobs of the probe with the learner's.

        Raises:
            EngineLost: The engine failed, or its weights are not the learner's.
            WeightsUnavailable: The weights or their learner are lost.
        """
        version = published.version
        proof = await load(self.engine, published, self._call, self.pool.rollout.sync_timeout_s)
        self.engine.proof = proof
        if proof.checksum != await learned(published.checksum):
            raise EngineLost(f"it loaded other weights than those of version {version}")
        expected: np.ndarray = await learned(published.logprobs)
        self._calibrate(published, proof)
        self.engine.gap = gap = mean_gap(proof.logprobs, expected)
        limit = self.pool.limit(self.engine, published.probe, expected)
        if not gap <= limit:
            problem = (
                f"its weights of version {version} are not the learner's: logprobs of the probe differ by {gap:.1e} nats, "
                f"allowed are {limit:.1e} (rollout.probe_tolerance)"
            )
            if not gap <= self.pool.tolerance or self.engine.doubts == 0:
                self.engine.doubts += gap <= self.pool.tolerance
                raise EngineLost(problem)
            # Another process with the same weights differs as much: it rounds more than it did with the start model.
            if self.engine.doubts == 1:
                logger.warning(
                    f"pool: {self.engine.name} serves all the same, as its last process differed, too: {problem}"
                )
            self.engine.doubts += 1

    def _calibrate(self, published: Published, proof: Proof) -> None:
        """Note the rounding of an actor that has computed the probe with the start model.

        Raises:
            EngineLost: With the model that it read from its folder it computes something else than the learner.
        """
        if published.start is None or proof.start is None:
            return
        calibration = Calibration.of(proof.start, published.start)
        if not calibration.gap <= self.pool.tolerance:
            raise EngineLost(
                f"it does not compute the learner's start model: logprobs of the probe differ by {calibration.gap:.1e} nats, "
                f"allowed are {self.pool.tolerance:.1e} (rollout.probe_tolerance)"
            )
        self.engine.calibrated = (published.probe, calibration)

    async def _collect_report(self) -> None:
        """Collect what the engine has finished; without tasks, wait for a change or check that the engine replies."""
        engine, schedule = self.engine, self.pool.schedule
        if not schedule.load(engine.name) and await event_set(engine.changed, HEARTBEAT_S):
            engine.changed.clear()
            return
        engine.changed.clear()
        wait_s = POLL_S if schedule.load(engine.name) else 0.0
        self.process_report(await self._call("collect", RESPONSE_TIMEOUT_S, wait_s))
        late = schedule.overdue(engine.name, time.monotonic())
        if late:
            raise EngineLost(
                f"it sampled no token for {len(late)} tasks within rollout.task_timeout_s ({late[0].timeout_s:g} s), first "
                f"prompt {late[0].prompt_id}"
            )

    def process_report(self, report: EngineReport) -> None:
        """Update the schedule from a report and deliver the outcomes in it."""
        engine, schedule, now = self.engine, self.pool.schedule, time.monotonic()
        engine.busy_s += report.busy_s
        if report.sampled:
            schedule.sampled(engine.name, now)
        for task_id, rollouts in report.progress.items():
            schedule.progressed(task_id, engine.name, rollouts, now)
        for task_id, found in report.finished:
            engine.tokens += sum(len(rollout.tokens) for rollout in found)
            task = schedule.done(task_id, engine.name, now)
            if task is None:
                continue  # cancelled
            versions = {version for rollout in found for version, _, _ in rollout.policy_versions}
            proved = range(task.policy_version, engine.health.version + 1)
            assert all(version in proved for version in versions), (
                f"{engine.name} sampled with {versions}, proved {engine.health.version}, task has {task.policy_version}"
            )
            self.pool.deliver(TaskOutcome(task, found))
        for task_id, reason in report.refused:
            task = schedule.refused(task_id, engine.name)
            if task is not None:
                self.pool.deliver(TaskOutcome(task, [], reason))
        self.pool.dispatch()

    def _handle_engine_loss(self, reason: str, preempted: bool = False) -> float | None:
        """Queue the engine's tasks again; return the seconds until it may restart, None when it must not."""
        engine, pool = self.engine, self.pool
        pool.preemptions += preempted
        pool.losses += not preempted
        engine.health.mark_lost(reason, preempted)
        engine.kill()
        held = pool.schedule.load(engine.name)
        for task in pool.schedule.engine_down(engine.name, forgive=preempted):
            tries = pool.rollout.max_attempts
            pool.deliver(TaskOutcome(task, [], f"failed {tries} times, the last time: {reason}", tries))
        for name in pool.schedule.crashes.take_excused():
            # A prompt that crashes engines uses up no restarts.
            pool.engines[name].health.restarts -= 1
        delay_s = engine.health.plan_restart()
        if delay_s is None:
            restart = "no restart left"
        else:
            restart = f"restarting ({engine.health.restarts} of {engine.health.max_restarts} restarts used)"
        node = "; its node was preempted" if preempted else ""
        logger.warning(f"pool: lost {engine.name} ({reason}){node}; requeued {held} rollouts; {restart}")
        pool.engine_changed.set()
        pool.dispatch()
        return delay_s

    def _stopped(self) -> bool:
        return is_stopped(self._process)

    async def _ping(self) -> None:
        """Wait for a sign of life; raise TimeoutError without one."""
        await within(value_of(self.engine.actor.ping.remote()), RESPONSE_TIMEOUT_S, self._stopped)

    async def _call(self, method: str, limit_s: float, *args: Any) -> Any:
        """Call the actor with a deadline; raise EngineLost on any failure, WeightsUnavailable when weights are lost."""
        try:
            reply = value_of(getattr(self.engine.actor, method).remote(*args))
            if method not in LOADING:
                return await within(reply, limit_s, self._stopped)
            return await while_alive(reply, limit_s, self._ping, PING_S)
        except TimeoutError:
            if self._stopped():
                raise EngineLost(f"its process is stopped and does not reply to {method}") from None
            silent = f", or to a ping within {RESPONSE_TIMEOUT_S:g} s" if method in LOADING else ""
            raise EngineLost(f"no reply to {method} within {limit_s:g} s{silent}") from None
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if method == "update" and isinstance(cause, ObjectLostError):  # the weights' node is gone
                raise WeightsUnavailable(last_line(cause)) from error
            raise EngineLost(f"{method}: {last_line(error)}", was_preempted(error)) from error
