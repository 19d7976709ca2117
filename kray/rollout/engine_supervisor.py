"""The life of one engine of a pool, over as many Ray actors as it takes.

`tend` brings the actor up, proves its weights, hands it work and takes its reports, stops it when it is not needed, and
starts anew when it is lost. Health says what the engine may do; the pool's schedule says what it works on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from kray.errors import KrayError
from kray.rollout.engine import EngineActor
from kray.rollout.health import Health, State
from kray.rollout.outcome import EngineReport, TaskOutcome
from kray.weight_sync.proof import Proof

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from kray.rollout.pool import Pool, Published

IN_HAND = 2.0  # unfinished rollouts up to which an engine is given more, over those that it generates at a time
POLL_S = 2.0  # how long a busy engine is listened to at a time
HEARTBEAT_S = 15.0  # an idle engine is asked whether it lives
PLACE_S = 1.0  # how soon an engine that is not needed any more stops waiting for room
WORRY_S = 30.0  # how often a long wait says what it waits for
SILENCE_S = 60.0  # an engine that does not even answer a poll for so long is taken for dead


class EngineLost(Exception):
    """An engine died, hung or served wrong weights; its actor is to be replaced."""

    def __init__(self, reason: str, preempted: bool = False):
        super().__init__(reason)
        self.preempted = preempted  # its node was taken away


class WeightsLost(Exception):
    """The published weights are gone, or their learner is: no fault of the engine, which waits for the next version."""


class EngineSupervisor:
    """One engine as its pool knows it."""

    def __init__(self, pool: Pool, name: str, max_restarts: int):
        self.pool, self.name = pool, name
        self.health = Health(max_restarts)
        self.actor: Any = None
        self.needed = False  # else it ends what it has in hand and rests
        self.proof: Proof | None = None  # its answer to the newest weights
        self.gap = 0.0  # nats between engine and learner at its last proof
        self.busy_s = self.up_s = 0.0  # in which it was stepping, and up, over all its actors (up: of those that ended)
        self.tokens = 0  # response tokens that it has delivered
        self.up_since: float | None = None  # monotonic s
        self.wake = asyncio.Event()  # there is work for it, or a new version, or it is not needed any more
        self._lives = 0  # actors so far

    async def tend(self) -> None:
        """Keeps one engine alive and at work while it is needed, over as many actors as its restarts allow."""
        while True:
            try:
                if self.health.state is State.RESTING:
                    await self._until_needed()
                if await self._bring_up():
                    while self.needed or self.pool.schedule.load(self.name):
                        if await self._serve_newest():
                            await self._work()
                self._retire()
            except EngineLost as loss:
                delay_s = self._bury(str(loss), loss.preempted)
                if delay_s is None:
                    return
                await asyncio.sleep(delay_s)

    async def _until_needed(self) -> None:
        while not self.needed:
            self.wake.clear()
            await arrives(self.wake, HEARTBEAT_S)
        self.health.mark_needed()

    def _retire(self) -> None:
        """Stops an engine that is not needed and holds nothing."""
        lost = self.pool.schedule.engine_down(self.name)
        assert not lost, f"{self.name} was stopped with work in hand"
        self.health.mark_resting()
        self.kill()
        left = sum(engine.needed for engine in self.pool.engines)
        logger.info(
            f"pool: {self.name} is not needed any more and stopped; {left} of {len(self.pool.engines)} engines stay"
        )
        self.pool.changed.set()

    async def _bring_up(self) -> bool:
        """A new actor for the engine, with its model loaded; false when it was not needed any more before it had room."""
        options = {
            "name": f"kray-{self.pool.label}-{self.name}-{self._lives}",
            "num_cpus": self.pool.spec.cpus,
            "num_gpus": self.pool.spec.gpus,
            "max_concurrency": 4,
            "runtime_env": {"env_vars": self.pool.spec.environment()},
        }
        self._lives += 1
        try:
            self.actor = EngineActor.options(**options).remote(self.pool.spec)
        except ValueError as error:  # the name of an actor that is still dying
            raise EngineLost(str(error)) from error
        if not await self._placed():
            return False
        await self._call("start", self.pool.rollout.start_timeout_s)
        self.up_since = time.monotonic()
        self.health.mark_started()
        self.pool.changed.set()
        return True

    async def _placed(self) -> bool:
        """Waits until the cluster has room for the actor, however long its autoscaler takes; says so now and then.

        False when the engine is not needed any more. `publish` and `Session.next` bound the wait where no engine serves.
        """
        waiting = asyncio.ensure_future(_value(self.actor.__ray_ready__.remote()))
        started = worried = time.monotonic()
        try:
            while not (await asyncio.wait({waiting}, timeout=PLACE_S))[0]:
                now = time.monotonic()
                if not self.needed:
                    return False
                if now - worried >= WORRY_S:
                    worried = now
                    have = f"{self.pool.serving} of {sum(e.needed for e in self.pool.engines)} engines that are wanted serve"
                    logger.info(
                        f"pool: {self.name} is not placed after {now - started:.0f} s; {have}{self.pool.shortage()}"
                    )
            waiting.result()
            return True
        except RayError as error:
            raise EngineLost(f"start: {_last_line(error)}", _preempted(error)) from error
        finally:
            waiting.cancel()

    async def _serve_newest(self) -> bool:
        """Holds the engine back until it has proved the newest version; false when it is not needed any more."""
        void: Published | None = None  # what nobody can prove
        while self.health.state is not State.SERVING:
            while (published := self.pool.published) is None or published is void:
                if not self.needed:
                    return False
                self.wake.clear()
                await arrives(self.wake, HEARTBEAT_S)
            try:
                await self._prove(published)
            except WeightsLost as loss:
                void = published
                logger.warning(f"pool: {self.name} waits for other weights than version {published.version}: {loss}")
                continue
            if published is self.pool.published:
                self.health.mark_proved(published.version)
                # With one engine there is nobody to share with: all work at once keeps its batches reproducible.
                if not self.pool.schedule.is_up(self.name):
                    capacity = round(IN_HAND * self.pool.spec.max_sequences)
                    self.pool.schedule.engine_up(self.name, capacity if len(self.pool.engines) > 1 else None)
                self.pool.schedule.hold(self.name, not self.needed)
                self.pool.changed.set()
                self.pool.dispatch()
        return True

    async def _prove(self, published: Published) -> None:
        """Gives the engine these weights and compares what it makes of the probe. Raises EngineLost, WeightsLost."""
        limit_s, probe = self.pool.rollout.sync_timeout_s, list(published.probe)
        self.proof = proof = await self._call("update", limit_s, published.version, published.weights, probe)
        if proof.checksum != published.checksum:
            raise EngineLost(f"it took other weights than those of version {published.version}")
        expected = published.logprobs
        if isinstance(expected, asyncio.Future):
            try:
                expected = await asyncio.shield(expected)
            except KrayError as error:
                raise WeightsLost(str(error)) from error
        self.gap = float(np.abs(proof.logprobs - expected).mean())
        if not self.gap <= self.pool.tolerance:
            raise EngineLost(
                f"its weights of version {published.version} are not the learner's: logprobs of the probe differ by "
                f"{self.gap:.1e} nats, rollout.probe_tolerance is {self.pool.tolerance:.0e}"
            )

    async def _work(self) -> None:
        """One round: collect what the engine has finished, or wait until there is something for it to do."""
        if not self.pool.schedule.load(self.name) and await arrives(self.wake, HEARTBEAT_S):
            self.wake.clear()
            return  # work or a version has come, or it is not needed
        self.wake.clear()
        report: EngineReport = await self._call(
            "collect", SILENCE_S, POLL_S if self.pool.schedule.load(self.name) else 0.0
        )
        self._take(report)
        late = self.pool.schedule.overdue(self.name, time.monotonic())
        if late:
            raise EngineLost(
                f"{len(late)} tasks ran out of time, first prompt {late[0].prompt_id} (rollout.task_timeout_s is "
                f"{late[0].timeout_s:g})"
            )

    def _take(self, report: EngineReport) -> None:
        now = time.monotonic()
        self.busy_s += report.busy_s
        for task_id, rollouts in report.progress.items():
            self.pool.schedule.progressed(task_id, self.name, rollouts, now)
        for task_id, found in report.finished:
            self.tokens += sum(len(rollout.tokens) for rollout in found)
            task = self.pool.schedule.done(task_id, self.name, now)
            if task is None:
                continue  # cancelled meanwhile
            versions = {version for rollout in found for version, _, _ in rollout.policy_versions}
            proved = range(task.policy_version, self.health.version + 1)
            assert all(version in proved for version in versions), (
                f"{self.name} served {versions}, proved {self.health.version}, was asked for {task.policy_version}"
            )
            self.pool.deliver(TaskOutcome(task, found))
        for task_id, reason in report.refused:
            task = self.pool.schedule.refused(task_id, self.name)
            if task is not None:
                self.pool.deliver(TaskOutcome(task, [], reason))
        self.pool.dispatch()

    def _bury(self, reason: str, preempted: bool = False) -> float | None:
        """The engine is dead: its work goes to others. Seconds until it may start anew, or None."""
        self.pool.preemptions += preempted
        self.pool.deaths += not preempted
        self.health.mark_lost(reason, preempted)
        self.kill()
        held = self.pool.schedule.load(self.name)
        for task in self.pool.schedule.engine_down(self.name, forgive=preempted):
            tries = self.pool.rollout.max_attempts
            self.pool.deliver(TaskOutcome(task, [], f"failed {tries} times, at last: {reason}", tries))
        delay_s = self.health.plan_restart()
        fate = "it is not started again" if delay_s is None else "starting anew"
        how = "lost to a preempted node" if preempted else "lost"
        logger.warning(
            f"pool: {self.name} {how} with {held} rollouts in hand, which go to other engines; {fate}: {reason}"
        )
        self.pool.changed.set()
        self.pool.dispatch()
        return delay_s

    def rouse(self) -> None:
        """Makes the engine's tender look at what has changed, also while it listens to the engine."""
        self.wake.set()
        if self.pool.schedule.load(self.name):
            self.actor.wake.remote()

    async def _call(self, method: str, limit_s: float, *args: Any) -> Any:
        """A remote call with a deadline; whatever goes wrong is the loss of the engine."""
        try:
            return await asyncio.wait_for(getattr(self.actor, method).remote(*args), limit_s)
        except TimeoutError:
            raise EngineLost(f"no answer to {method} within {limit_s:g} s") from None
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if method == "update" and isinstance(cause, ObjectLostError):  # the weights' node is gone
                raise WeightsLost(_last_line(cause)) from error
            raise EngineLost(f"{method}: {_last_line(error)}", _preempted(error)) from error

    def kill(self) -> None:
        """Ends the actor, if there is one."""
        if self.up_since is not None:
            passed_s = time.monotonic() - self.up_since
            self.up_s += passed_s
            self.pool.up_s += passed_s
            self.up_since = None
        if self.actor is not None:
            ray.kill(self.actor)
            self.actor = None


async def arrives(event: asyncio.Event, limit_s: float) -> bool:
    """Whether the event comes in time."""
    try:
        await asyncio.wait_for(event.wait(), limit_s)
    except TimeoutError:
        return False
    return True


def _preempted(error: RayError) -> bool:
    """Whether the cluster took the actor's node away: no fault of the actor's."""
    return bool(getattr(error, "preempted", False))


async def _value(reference: Any) -> Any:
    return await reference


def _last_line(error: BaseException) -> str:
    """Of a remote traceback: the line that says what happened."""
    return str(error).strip().splitlines()[-1][:300]
