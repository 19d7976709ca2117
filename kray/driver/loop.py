"""The training loop: one step after the other, readable from top to bottom.

A step: the sampler names prompts, the planner gives each a budget, the pool generates, the scorer judges, the learner
updates, the engines prove the new weights. Policy version v is the policy after v steps; step s is learned from by version
s. Its collection begins when version s - async.max_staleness is served: with 0 the two take turns, and a run does not
depend on timing; with more, engines go on while the learner updates.
A run can be stopped at any time: collecting is given up, what is collected is learned from, the checkpoint holds it all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import resource
import time
from itertools import compress
from typing import Any

import numpy as np

from kray.config import KrayConfig
from kray.driver.components import Components, sampling
from kray.driver.console import Summary, evaluation_line, step_line
from kray.driver.evaluation import Evaluation, judge
from kray.driver.output import Console
from kray.driver.recorder import Carried, StepRecorder
from kray.driver.state import RunState
from kray.driver.step_metrics import admitted
from kray.driver.stop import Stop, Stopped, end
from kray.driver.tables import belief_rows
from kray.driver.workers import Workers
from kray.errors import InfrastructureError, KrayError, StorageError
from kray.metrics import (
    CHECKPOINT_FAILED,
    GROUP_EFFECTIVE_RATIO_PROMPTS,
    GROUP_EFFECTIVE_RATIO_ROLLOUTS,
    MEMORY_DRIVER_GIB,
    POOL_ENGINES,
    POOL_PREEMPTIONS,
    POOL_PROBE_GAP,
    POOL_RESTARTS,
    POOL_RETRIES,
    PROGRESS_EPOCH,
    PROGRESS_ROLLOUTS,
    PROGRESS_TOKENS,
    TIMING_S_CHECKPOINT,
    TIMING_S_EVALUATE,
    TIMING_S_STEP,
    timing,
)
from kray.planner.metrics import status
from kray.prompts.quarantine import Quarantine
from kray.records import EncodedPrompt, derive_seed
from kray.rollout.collector import check_failures, verdicts
from kray.rollout.staleness import fresh
from kray.tracking import Tracker
from kray.train.checkpoints import CheckpointStore

logger = logging.getLogger(__name__)

BELIEF_ROWS = 50_000  # of the table that comes with a checkpoint
SAVE_AGAIN_S = 5.0  # at the end of a run, when the disk is full


class Training:
    """Trains the policy that the fleet's learner holds, from `state` on. base: the fleet's policy version at step 0."""

    def __init__(
        self,
        config: KrayConfig,
        components: Components,
        state: RunState,
        workers: Workers,
        tracker: Tracker,
        store: CheckpointStore,
        stop: Stop,
        console: Console,
        base: int = 0,
    ):
        self.config, self.components, self.state, self.workers, self.tracker = (
            config,
            components,
            state,
            workers,
            tracker,
        )
        self.store, self.stop, self.console, self.base = store, stop, console, base
        self.planner = components.planner
        self.collector = workers.collector(components)
        self.collector.lengths = dict(state.lengths)
        self.recorder = StepRecorder(config, components, tracker)
        self.recorder.load(state)
        workers.learners.nonfinite_steps = state.nonfinite
        self.quarantine = Quarantine(config.prompts.quarantine_after)
        self.quarantine.load_dict(state.quarantine)
        self.last_evaluation: Evaluation | None = None  # of a policy that has been trained here
        self._collected: asyncio.Queue[Carried | Exception] = asyncio.Queue()
        self._released = -1  # collecting may use policies up to this version
        self._release_came = asyncio.Event()
        # step -> what had been learned about prompts before it was collected
        self._marks: dict[int, dict[str, Any]] = {}
        self._saved_step = state.step if state.planner else -1  # a state that was never saved has no planner's
        self._learning = False  # a step is being learned from: the learner and the state are of different steps
        self._saving: asyncio.Task | None = None
        self._failed_saves = self._failed_in_a_row = 0

    @property
    def version(self) -> int:
        """Of the policy after the completed steps, as engines know it."""
        return self.base + self.state.step

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def train(self) -> None:
        """Raises Stopped or KrayError, with all that was collected learned from and saved where the learner still can."""
        if self.state.accuracy_before is None:
            await self.evaluate("before training")
        collecting = asyncio.create_task(self._collect_all())
        try:
            while self.state.step < self.config.run.steps:
                self._release(self.state.step)
                started = time.monotonic()
                self.workers.pool.busy_share()  # evaluations and checkpoints between two steps do not count
                await self._learn(await self.stop.unless(self._next()), started)
                if self._due(self.config.evaluate.every) and self.state.step < self.config.run.steps:
                    await self.evaluate()
                if self._due(self.config.run.checkpoint_every):
                    await self.save()
        except Stopped:
            await self._wind_up(collecting)
            raise
        except Exception as error:
            await self._rescue(collecting, error)
            raise
        finally:
            await end(collecting)
        await self.finish()  # first: an evaluation that fails must not cost the training
        await self.evaluate("after training")

    async def _wind_up(self, collecting: asyncio.Task) -> None:
        """Learns from all that was collected and saves; the error that ended the collecting, if any, is raised after that."""
        await end(collecting)
        error: Exception | None = None
        while error is None and not self._collected.empty():
            found = self._collected.get_nowait()
            if isinstance(found, Exception):
                error = found
            else:
                await self._learn(found, time.monotonic())
        await self.finish()
        if error is not None:
            raise error

    async def _rescue(self, collecting: asyncio.Task, error: Exception) -> None:
        """Saves the completed steps before an error ends the training, where the learner is there and between two steps."""
        if self._learning or isinstance(error, InfrastructureError):
            with contextlib.suppress(Exception):  # the checkpoint that is being written may yet be complete
                await self.written()
            return
        try:
            await self._wind_up(collecting)
        except Exception as another:  # the first error is the one to be raised
            logger.info(f"the steps since the newest checkpoint could not all be saved: {another}")

    async def _collect_all(self) -> None:
        """Collects the steps one after the other, each when its policy may be used."""
        try:
            for step in range(self.state.step, self.config.run.steps):
                await self._until_released(step - self.config.async_.max_staleness)
                every = self.config.run.checkpoint_every
                if every and step % every == 0 and step > self.state.step:  # the learner is behind
                    self._marks[step] = self._knowledge()
                self._collected.put_nowait(await self.collect(step))
        except Exception as error:  # raised where the step is waited for
            self._collected.put_nowait(error)

    async def _next(self) -> Carried:
        found = await self._collected.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def collect(self, step: int) -> Carried:
        """Plans the step, generates and judges its rollouts, and learns from the labels."""
        components = self.components
        offered, due = components.choose(step)
        chosen, due, budget = self._at_large(offered, due)
        ids = [prompt.id for prompt, _ in chosen]
        last_visit = dict(zip(ids, status(*self.planner.beliefs.last_visit(ids)).tolist(), strict=True))
        started = time.monotonic()
        cost = self.collector.expected_tokens(ids)
        plan = self.planner.begin(
            ids,
            self._enough(step, cost, due, budget),
            cost=cost,
            due=due,
            labels=[components.labels[i] for i in ids] if components.labels else None,
            features=np.array([components.features[i] for i in ids]) if components.features else None,
        )
        plan_s = time.monotonic() - started

        def seeds(prompt_id: str) -> int:
            return derive_seed(self.config.run.seed, step, prompt_id)

        try:
            version, how = self.base + self._released, sampling(self.config, components)
            collected = await self.collector.collect(plan, chosen, seeds, how, version, remember=False)
            allocation = admitted(plan.allocation())
            ordered = int(allocation.budgets.sum()) + collected.failed
            check_failures(collected.failures, ordered, self.config.run.max_failed_share)
        except BaseException:
            self.planner.withdraw()  # as if the step had never been planned
            raise
        self.collector.remember(collected.groups)
        if components.waiting is not None:
            tried = {*allocation.prompt_ids, *(failure.prompt_id for failure in collected.failures)}
            tried |= {prompt.id for prompt, _ in offered} - set(ids)  # those in quarantine have had their turn
            indices, _ = components.waiting.offer(step)  # the same as before: nothing has been visited since
            components.waiting.visited(step, [i for i in indices if components.train[i][0].id in tried])
        weights = dict(zip(allocation.prompt_ids, allocation.weights.tolist(), strict=True))
        for group in collected.groups:
            group.weight = weights[group.prompt.id]
        for prompt_id in self.quarantine.visited(*verdicts(collected)):
            logger.info(f"prompt {prompt_id} is left out from now on: {self.quarantine.left_out[prompt_id]}")
        waiting = components.waiting.metrics() if components.waiting else {}
        return Carried(
            allocation,
            collected,
            previous_status=np.array([last_visit[i] for i in allocation.prompt_ids], dtype=np.int64),
            plan_metrics=plan.metrics() | waiting | self.quarantine.metrics(),
            plan_s=plan_s,
        )

    async def _learn(self, carried: Carried, started: float) -> None:
        """One update, new weights for the engines, and the record of it. started: of the step, monotonic s."""
        self._learning = True
        config, step, pool = self.config, self.state.step, self.workers.pool
        groups, staleness = fresh(carried.collected.groups, self.version, config.async_.max_staleness)
        waited_s = time.monotonic() - started
        update, update_s = await _timed(self.workers.learners.update(groups))
        gap, sync_s = await _timed(self.workers.serve(self.version + 1, self.components.probe))
        if config.async_.max_staleness:
            self._release(step + 1)
        step_s = time.monotonic() - started
        times = {"wait": waited_s, "update": update_s, "sync": sync_s, "step": step_s}
        times["idle"] = step_s * (1 - pool.busy_share())
        self.state.step += 1
        self.state.elapsed_s += step_s
        self.state.visits += len(carried.allocation.prompt_ids)
        self.state.rollouts += sum(len(group.rollouts) for group in carried.collected.groups)
        self.state.tokens += sum(group.tokens for group in carried.collected.groups)
        self._learning = False
        standing = self._standing() | ({} if math.isnan(gap) else {POOL_PROBE_GAP: gap})
        metrics = self.recorder.step(self.state.step, carried, update | staleness | standing, times)
        left_s = self.recorder.left_s(config.run.steps - self.state.step)
        self.console.print(step_line(self.state.step, config.run.steps, metrics, left_s))

    # -- evaluation and checkpoints -----------------------------------------------------------------------------------

    async def evaluate(self, when: str = "") -> None:
        """Judges the policy on the test prompts, says and records it. Raises Stopped."""
        work = judge(self.config, self.components, self.collector, self.version)
        evaluation, evaluate_s = await _timed(self.stop.unless(work))
        if self.state.accuracy_before is None:
            self.state.accuracy_before = evaluation.accuracy
        else:
            self.last_evaluation = evaluation
        self.tracker.log_step(self.state.step, evaluation.metrics() | {TIMING_S_EVALUATE: evaluate_s})
        self.console.print(evaluation_line(self.state.step, evaluation, when, evaluate_s))

    async def save(self) -> None:
        """Begins a checkpoint of the completed steps; it is written while training goes on, one at a time."""
        await self.written()
        started, step = time.monotonic(), self.state.step
        try:
            folder = self.store.begin(step)
            await self.workers.learners.save(folder / "learner", wait=False)
        except (OSError, StorageError) as error:
            self._not_saved(step, error)
            return
        for name, value in ((self._marks.pop(step, None) or self._knowledge()) | self.recorder.to_dict()).items():
            setattr(self.state, name, value)
        self.state.nonfinite = self.workers.learners.nonfinite_steps
        self._saving = asyncio.create_task(self._write(step, self.state.to_dict(), started))
        self.tracker.log_step(step, {TIMING_S_CHECKPOINT: time.monotonic() - started})
        ids = [prompt.id for prompt, _ in self.components.train[:BELIEF_ROWS]]
        self.tracker.log_table(step, belief_rows(self.planner.beliefs, ids), "beliefs")

    async def finish(self) -> None:
        """Returns when the completed steps are on disk. Raises KrayError when they cannot be written."""
        await self.written()
        while self._saved_step != self.state.step:
            await self.save()
            await self.written()
            if self._saved_step != self.state.step:
                await asyncio.sleep(SAVE_AGAIN_S)

    async def _write(self, step: int, state: dict[str, Any], started: float) -> None:
        try:
            await self.workers.learners.saved()
            final = await asyncio.to_thread(self.store.commit, step, state)
        except (OSError, StorageError) as error:
            self._not_saved(step, error)
            return
        self._saved_step, self._failed_in_a_row = step, 0
        logger.info(f"saved {final} ({time.monotonic() - started:.1f} s)")
        if self.store.prune_problem:
            logger.warning(f"{self.store.prune_problem}; tried again with the next checkpoint")

    def _not_saved(self, step: int, error: Exception) -> None:
        """A full disk may have room again by the next save. Raises KrayError after run.max_failed_saves."""
        self.store.discard(step)
        self._failed_saves += 1
        self._failed_in_a_row += 1
        kept = self.store.newest()
        stays = f"{kept.name} stays the newest" if kept else "there is no checkpoint yet"
        logger.info(f"checkpoint of step {step} not written, {stays}: {error}")
        if self._failed_in_a_row > self.config.run.max_failed_saves:
            times = f"{self._failed_in_a_row} times in a row (run.max_failed_saves)"
            raise KrayError(f"checkpoints could not be written {times}; {stays}; at last: {error}") from error

    async def written(self) -> None:
        """Returns when no checkpoint is being written."""
        saving, self._saving = self._saving, None
        if saving is not None:
            await saving

    def _knowledge(self) -> dict[str, Any]:
        """What labels and lengths have taught, as RunState holds it."""
        waiting = self.components.waiting.to_dict() if self.components.waiting else self.state.waiting
        learned = {"planner": self.planner.to_dict(), "lengths": dict(self.collector.lengths), "waiting": waiting}
        return learned | {"quarantine": self.quarantine.to_dict()}

    def summary(self) -> Summary:
        last, mean = self.last_evaluation, self.recorder.mean
        return Summary(
            folder=str(self.store.run_folder),
            steps=self.state.step,
            of_steps=self.config.run.steps,
            stopped=self.stop.reason,
            accuracy_before=self.state.accuracy_before,
            accuracy_after=last.accuracy if last else None,
            greedy_after=last.greedy if last else None,
            test_prompts=len(self.components.test),
            effective_rollouts=mean(GROUP_EFFECTIVE_RATIO_ROLLOUTS),
            effective_prompts=mean(GROUP_EFFECTIVE_RATIO_PROMPTS),
            shares={
                part: mean(timing(part)) / mean(TIMING_S_STEP)
                for part in ("generate", "reward", "update", "sync", "idle")
            },
            rollouts=self.state.rollouts,
            tokens=self.state.tokens,
            elapsed_s=self.state.elapsed_s,
            engine_deaths=self.workers.pool.losses,
            restarts=dict(self.workers.restarts),
            left_out=dict(self.quarantine.left_out),
            open_command=self.tracker.open_command,
        )

    # -- small steps --------------------------------------------------------------------------------------------------

    def _at_large(
        self, offered: list[EncodedPrompt], due: list[bool] | None
    ) -> tuple[list[EncodedPrompt], list[bool] | None, int | None]:
        """The prompts that are not in quarantine, which of them are due, and the budget where it is not the usual one.

        The others get what those left out would have got, as far as plan.upper lets them. Raises KrayError without any.
        """
        stay = [prompt.id not in self.quarantine for prompt, _ in offered]
        if all(stay):
            return offered, due, None
        chosen = list(compress(offered, stay))
        if not chosen:
            raise KrayError(f"all {len(offered)} prompts of a step are in quarantine (prompts.quarantine_after)")
        plan = self.config.plan
        most = plan.upper * len(chosen)
        budget = most if plan.unit == "rollouts" and most < plan.budget else None
        return chosen, None if due is None else list(compress(due, stay)), budget

    def _enough(self, step: int, cost: list[float], due: list[bool] | None, budget: int | None) -> float | None:
        """The step's budget. One of tokens is raised where responses are so long that it does not pay for the first rollouts.

        cost: expected tokens of a rollout of each prompt.
        """
        plan = self.config.plan
        if plan.unit != "tokens":
            return budget
        least = self.planner.least(len(cost), cost, due)
        if least <= plan.token_budget:
            return None
        logger.info(
            f"step {step}: plan.token_budget {plan.token_budget} is raised to {least:.0f}, the expected tokens of the "
            f"first rollouts (plan.lower {plan.lower}) of its prompts"
        )
        return least

    def _release(self, version: int) -> None:
        """This version is served: steps that may be generated by it can be collected."""
        self._released = version
        self._release_came.set()

    async def _until_released(self, version: int) -> None:
        while self._released < version:
            self._release_came.clear()
            await self._release_came.wait()

    def _standing(self) -> dict[str, float]:
        """Pool, progress and memory after a step."""
        pool = self.workers.pool
        return {
            POOL_ENGINES: pool.serving,
            POOL_RESTARTS: sum(engine.health.restarts for engine in pool.engines),
            POOL_RETRIES: pool.schedule.retried,
            POOL_PREEMPTIONS: pool.preemptions,
            **{f"{who}/restarts": times for who, times in self.workers.restarts.items()},
            CHECKPOINT_FAILED: self._failed_saves,
            PROGRESS_ROLLOUTS: self.state.rollouts,
            PROGRESS_TOKENS: self.state.tokens,
            PROGRESS_EPOCH: self.state.visits / len(self.components.train),
            MEMORY_DRIVER_GIB: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }

    def _due(self, every: int) -> bool:
        return bool(every) and self.state.step % every == 0


async def _timed(work: Any) -> tuple[Any, float]:
    started = time.monotonic()
    return await work, time.monotonic() - started
