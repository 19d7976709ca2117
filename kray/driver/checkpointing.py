"""Checkpoints of a training: written in the background, one at a time, and retried when the disk is full."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

from kray.config import KrayConfig
from kray.config.players import Player
from kray.driver.components import Components
from kray.driver.past_policies import HeldPolicy, write
from kray.driver.recorder import StepRecorder
from kray.driver.state import RunState
from kray.driver.step import StepRunner
from kray.driver.tables import belief_rows
from kray.driver.workers import Workers
from kray.errors import KrayError, StorageError
from kray.metrics import TIMING_S_CHECKPOINT
from kray.tracking import Tracker
from kray.train.checkpoints import CheckpointStore

logger = logging.getLogger(__name__)

# Rows of the table of beliefs that comes with a checkpoint: MLflow's page shows no more in reasonable time.
BELIEF_ROWS = 50_000
# Seconds between two attempts to write the last checkpoint of a run.
RETRY_S = 5.0


class Checkpointing:
    """Saves the completed steps of a training.

    Attributes:
        failed: Checkpoints that could not be written.
    """

    def __init__(
        self,
        config: KrayConfig,
        components: Components,
        state: RunState,
        steps: StepRunner,
        recorder: StepRecorder,
        workers: Workers,
        tracker: Tracker,
        store: CheckpointStore,
    ):
        self.config, self.components, self.state, self.steps = config, components, state, steps
        self.recorder, self.workers, self.tracker, self.store = recorder, workers, tracker, store
        self.failed = 0
        self._failed_in_a_row = 0
        # A state that was never saved holds nothing of the planner.
        self._saved_step = state.step if state.planner else -1
        # Step -> what labels had taught before it was collected, for steps that are collected before the learner is there.
        self._snapshots: dict[int, dict[str, Any]] = {}
        self._writing: asyncio.Task | None = None

    def before_collect(self, step: int) -> None:
        """Keep what a checkpoint of `step` completed steps has to hold, before labels of the next step change it."""
        every = self.config.run.checkpoint_every
        if every and step % every == 0 and step > self.state.step:
            self._snapshots[step] = self.steps.to_dict()

    async def save(self) -> None:
        """Begin a checkpoint of the completed steps; it is written while training goes on.

        Raises:
            KrayError: More than run.max_failed_saves checkpoints in a row could not be written.
        """
        await self.written()
        started, step = time.monotonic(), self.state.step
        try:
            folder = self.store.begin(step)
            await self.workers.learners.save(folder / "learner", wait=False)
        except (OSError, StorageError) as error:
            self._not_written(step, error)
            return
        learned = self._snapshots.pop(step, None) or self.steps.to_dict()
        for name, value in (learned | self.recorder.to_dict()).items():
            setattr(self.state, name, value)
        self.state.nonfinite = self.workers.learners.nonfinite_steps
        held = dict(self.workers.opponents.held)
        self._writing = asyncio.create_task(self._write(step, folder, self.state.to_dict(), held, started))
        self.tracker.log_step(step, {TIMING_S_CHECKPOINT: time.monotonic() - started})
        ids = [prompt.id for prompt, _ in self.components.train[:BELIEF_ROWS]]
        self.tracker.log_table(step, belief_rows(self.components.planner.beliefs, ids), "beliefs")

    async def finish(self) -> None:
        """Return when the completed steps are on disk.

        Raises:
            KrayError: They cannot be written.
        """
        await self.written()
        while self._saved_step != self.state.step:
            await self.save()
            await self.written()
            if self._saved_step != self.state.step:
                await asyncio.sleep(RETRY_S)

    async def written(self) -> None:
        """Return when no checkpoint is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    async def _write(
        self, step: int, folder: Path, state: dict[str, Any], held: dict[Player, HeldPolicy], started: float
    ) -> None:
        """Write the opponents' part, and commit the checkpoint when the learner has written its own."""
        try:
            await write(folder, held, self.config.rollout.sync_timeout_s)
            await self.workers.learners.saved()
            final = await asyncio.to_thread(self.store.commit, step, state)
        except (OSError, StorageError) as error:
            self._not_written(step, error)
            return
        self._saved_step, self._failed_in_a_row = step, 0
        logger.info(f"saved {final} ({time.monotonic() - started:.1f} s)")
        if self.store.prune_problem:
            logger.warning(f"{self.store.prune_problem}; tried again with the next checkpoint")

    def _not_written(self, step: int, error: Exception) -> None:
        """Count a failure: a full disk may have room again by the next checkpoint."""
        self.store.discard(step)
        self.failed += 1
        self._failed_in_a_row += 1
        kept = self.store.newest()
        stays = f"{kept.name} stays the newest" if kept else "there is no checkpoint yet"
        logger.warning(f"checkpoint of step {step} not written, {stays}: {error}")
        if self._failed_in_a_row > self.config.run.max_failed_saves:
            times = f"{self._failed_in_a_row} times in a row (run.max_failed_saves)"
            raise KrayError(f"checkpoints could not be written {times}; {stays}; at last: {error}") from error
