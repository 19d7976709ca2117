"""The training loop, readable from top to bottom.

A step: the sampler names prompts, the planner gives each a budget, the pool generates, the scorer gives rewards, the learner
updates, the engines prove the new weights. Policy version v is the policy after v steps; step s is learned from by version
s. Its collection begins when version s - async.max_staleness is served: with 0 the two take turns, and a run does not
depend on timing; with more, engines go on while the learner updates.

A run can be stopped at any time: collecting is given up, what is collected is learned from, the checkpoint holds it all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import time

from kray.cluster.folder_lock import LostLock
from kray.config import KrayConfig
from kray.driver.checkpointing import Checkpointing
from kray.driver.components import Components, OfferedPrompts
from kray.driver.console import Summary, evaluation_line, step_line
from kray.driver.evaluation import Evaluation, judge
from kray.driver.held_out import EVALUATIONS, compared_answers
from kray.driver.output import Console
from kray.driver.recorder import StepRecorder
from kray.driver.state import RunState
from kray.driver.step import StepRunner, timed
from kray.driver.step_metrics import judge_record
from kray.driver.stop import Stop, Stopped, end
from kray.driver.workers import Workers
from kray.errors import InfrastructureError
from kray.metrics import (
    CHECKPOINT_FAILED,
    DRIVER_RESTARTS,
    LEARNER_RESTARTS,
    MEMORY_DRIVER_GIB,
    POOL_ENGINES,
    POOL_PREEMPTIONS,
    POOL_RESTARTS,
    POOL_RETRIES,
    PROGRESS_EPOCH,
    PROGRESS_ROLLOUTS,
    PROGRESS_TOKENS,
    TIMING_S_EVALUATE,
    TIMING_S_STEP,
    TRAIN_EFFECTIVE_RATIO,
    timing,
)
from kray.rollout.collected import CollectedStep
from kray.tracking import Tracker
from kray.train.checkpoints import CheckpointStore

logger = logging.getLogger(__name__)


class Training:
    """Trains the policy that the workers' learner holds, from a state on.

    Subclasses observe it by the hooks `before_plan`, `after_collect`, `before_update`, `after_update` and
    `after_evaluation`, which do nothing here.

    Attributes:
        steps: Collects steps and learns from them.
        checkpoints: Saves the completed steps.
        recorder: Metrics of the newest steps.
        last_evaluation: The newest evaluation of a policy that was trained here.
    """

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
        """Take over the state; nothing is started.

        Args:
            config: The run's configuration.
            components: Prompts, planner and tokenizer.
            state: What a checkpoint held, or a new one.
            workers: Learner, engines and scorer.
            tracker: Takes metrics and tables.
            store: The run folder's checkpoints.
            stop: Tells that the run is to end.
            console: Gets the line of each step and evaluation.
            base: The policy version at step 0, as engines count versions.
        """
        self.config, self.components, self.state, self.workers = config, components, state, workers
        self.tracker, self.store, self.stop, self.console, self.base = tracker, store, stop, console, base
        self.steps = StepRunner(config, components, state, workers, base)
        self.recorder = StepRecorder(config, components, tracker)
        self.recorder.load(state)
        workers.learners.nonfinite_steps = state.nonfinite
        self.checkpoints = Checkpointing(config, components, state, self.steps, self.recorder, workers, tracker, store)
        self.last_evaluation: Evaluation | None = None
        self._collected: asyncio.Queue[CollectedStep | Exception] = asyncio.Queue()
        # Collecting may use the policies of up to so many steps.
        self._served_step = -1
        self._served_changed = asyncio.Event()
        # A step is being learned from: the learner and the state are of different steps.
        self._learning = False

    @property
    def version(self) -> int:
        """The version of the policy after the completed steps, as engines count versions."""
        return self.base + self.state.step

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def train(self) -> None:
        """Train to the last step and evaluate before, between and after.

        Raises:
            Stopped: The run was asked to stop; all that was collected has been learned from and saved.
            KrayError: Training cannot go on; completed steps have been saved where the learner still can.
        """
        if self.state.accuracy_before is None:
            await self.evaluate("before training")
        collecting = asyncio.create_task(self._collect_steps())
        try:
            while self.state.step < self.config.run.steps:
                self._set_served(self.state.step)
                started = time.monotonic()
                # Engines may rest during evaluations and checkpoints between two steps: that does not count.
                self.workers.pool.busy_share()
                await self._learn(await self.stop.unless(self._next_collected()), started)
                if self._due(self.config.evaluate.every) and self.state.step < self.config.run.steps:
                    await self.evaluate()
                if self._due(self.config.run.checkpoint_every):
                    await self.checkpoints.save()
        except Stopped:
            await self._learn_from_collected(collecting)
            raise
        except Exception as error:
            await self._save_after_error(collecting, error)
            raise
        finally:
            await end(collecting)
        # Before the evaluation, whose failure must not cost the training.
        await self.checkpoints.finish()
        await self.evaluate("after training")

    async def _collect_steps(self) -> None:
        """Collect the steps one after the other, each when its policy is served."""
        try:
            for step in range(self.state.step, self.config.run.steps):
                await self._until_served(step - self.config.async_.max_staleness)
                self.checkpoints.before_collect(step)
                self._collected.put_nowait(await self._collect(step))
        except Exception as error:
            # Raised where the step is waited for.
            self._collected.put_nowait(error)

    async def _collect(self, step: int) -> CollectedStep:
        """Offer prompts and collect their rollouts."""
        offered = self.components.offer(step)
        await self.before_plan(step, offered)
        collected = await self.steps.collect(step, offered, self._served_step)
        await self.after_collect(step, collected)
        return collected

    async def _next_collected(self) -> CollectedStep:
        found = await self._collected.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def _learn(self, collected: CollectedStep, started: float) -> None:
        """Update the policy, and record and print the step. started: of the step, in monotonic seconds."""
        self._learning = True
        await self.before_update()
        update = await self.steps.learn(collected, self.version, started)
        if self.config.async_.max_staleness:
            self._set_served(self.state.step + 1)
        self.state.step += 1
        self.state.elapsed_s += update.times["step"]
        self.state.visits += len(collected.allocation.prompt_ids)
        self.state.rollouts += collected.rollouts
        self.state.tokens += collected.tokens
        self._learning = False
        metrics = self.recorder.step(self.state.step, collected, update.metrics | self._run_metrics(), update.times)
        left_s = self.recorder.left_s(self.config.run.steps - self.state.step)
        self.console.print(step_line(self.state.step, self.config.run.steps, metrics, left_s))
        await self.after_update(collected)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _learn_from_collected(self, collecting: asyncio.Task) -> None:
        """Learn from all that was collected and save; then raise the error that ended the collecting, if any."""
        await end(collecting)
        error: Exception | None = None
        while error is None and not self._collected.empty():
            found = self._collected.get_nowait()
            if isinstance(found, Exception):
                error = found
            else:
                await self._learn(found, time.monotonic())
        await self.checkpoints.finish()
        if error is not None:
            raise error

    async def _save_after_error(self, collecting: asyncio.Task, error: Exception) -> None:
        """Save the completed steps before an error ends the training, where the learner is there and between two steps."""
        if self._learning or isinstance(error, InfrastructureError | LostLock):
            # The checkpoint that is being written may yet be complete.
            with contextlib.suppress(Exception):
                await self.checkpoints.written()
            return
        try:
            await self._learn_from_collected(collecting)
        except Exception as another:
            # The first error is the one to be raised.
            logger.warning(f"the steps since the newest checkpoint could not all be saved: {another}")

    # -- evaluation ---------------------------------------------------------------------------------------------------

    async def evaluate(self, when: str = "") -> None:
        """Evaluate the policy on the test prompts; record and print it.

        Args:
            when: Of the evaluation, for people; "" for after the newest step.

        Raises:
            Stopped: The run was asked to stop.
        """
        work = judge(self.config, self.components, self.steps.collector, self.version)
        evaluation, evaluate_s = await timed(self.stop.unless(work))
        if self.state.accuracy_before is None:
            self.state.accuracy_before = evaluation.accuracy
        else:
            self.last_evaluation = evaluation
        self.tracker.log_step(self.state.step, evaluation.metrics() | {TIMING_S_EVALUATE: evaluate_s})
        if (count := self.config.track.samples) > 0:
            self.tracker.log_table(self.state.step, evaluation.rows[:count], EVALUATIONS)
        self.console.print(evaluation_line(self.state.step, evaluation, when, evaluate_s))
        await self.after_evaluation()

    def summary(self) -> Summary:
        """Return how the run stands, for the report at its end."""
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
            answers=compared_answers(self.store.run_folder) if self.config.model.tiny is None else [],
            effective=mean(TRAIN_EFFECTIVE_RATIO),
            shares={
                part: mean(timing(part)) / mean(TIMING_S_STEP)
                for part in ("generate", "reward", "update", "sync", "idle")
            },
            rollouts=self.state.rollouts,
            tokens=self.state.tokens,
            elapsed_s=self.state.elapsed_s,
            engine_deaths=self.workers.pool.losses,
            restarts=dict(self.workers.restarts),
            left_out=dict(self.steps.quarantine.left_out),
            open_command=self.tracker.open_command,
            charts_url=self.tracker.charts_url,
        )

    # -- hooks --------------------------------------------------------------------------------------------------------

    async def before_plan(self, step: int, offered: OfferedPrompts) -> None:
        """Observe that step `step`, counted from 0, will be planned."""

    async def after_collect(self, step: int, collected: CollectedStep) -> None:
        """Observe step `step`, counted from 0, that has been collected; may add to its plan_metrics."""

    async def before_update(self) -> None:
        """Observe that the learner will update the policy."""

    async def after_update(self, collected: CollectedStep) -> None:
        """Observe a step that has been learned from and recorded."""

    async def after_evaluation(self) -> None:
        """Observe that an evaluation has been recorded."""

    # -- small steps --------------------------------------------------------------------------------------------------

    def _set_served(self, step: int) -> None:
        """Note that the policy after this step is served."""
        self._served_step = step
        self._served_changed.set()

    async def _until_served(self, step: int) -> None:
        """Return when the policy after this step, or a later one, is served."""
        while self._served_step < step:
            self._served_changed.clear()
            await self._served_changed.wait()

    def _run_metrics(self) -> dict[str, float]:
        """Return metrics of the pool, of progress, of judges and of memory."""
        pool = self.workers.pool
        return {
            POOL_ENGINES: pool.serving,
            POOL_RESTARTS: sum(engine.health.restarts for engine in pool.engines),
            POOL_RETRIES: pool.schedule.retried,
            POOL_PREEMPTIONS: pool.preemptions,
            LEARNER_RESTARTS: self.workers.restarts["learner"],
            DRIVER_RESTARTS: self.workers.restarts["driver"],
            CHECKPOINT_FAILED: self.checkpoints.failed,
            PROGRESS_ROLLOUTS: self.state.rollouts,
            PROGRESS_TOKENS: self.state.tokens,
            PROGRESS_EPOCH: self.state.visits / len(self.components.train),
            **judge_record(getattr(self.workers.scorer, "usage", None)),
            MEMORY_DRIVER_GIB: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }

    def _due(self, every: int) -> bool:
        return bool(every) and self.state.step % every == 0
