"""How a run recovers from a lost learner.

- An InfrastructureError (kray/errors.py) means that a learner rank or the driver was lost or hangs. The run goes back to its
  newest checkpoint and on from there, as often as its restarts allow. Engines, scorers and saves recover by themselves.
- Any other KrayError is of the configuration or the data: a retry would not help, and the run ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from kray.config import KrayConfig
from kray.driver.loop import Training
from kray.driver.stop import Stop
from kray.driver.workers import Workers
from kray.errors import InfrastructureError, KrayError

logger = logging.getLogger(__name__)

# Seconds of the longest wait before a restart.
LONGEST_WAIT_S = 60.0
# Makes a training, and names the checkpoint that its learner is to load.
Begin = Callable[[], tuple[Training, Path | None]]


class Restarts:
    """A budget of restarts with back-off. Pure: owns no clock.

    The first restart after some progress comes at once, those that follow without any after 2, 4, ... 60 s.
    """

    def __init__(self, most: int, window_s: float):
        """Allow restarts.

        Args:
            most: How many are allowed within the window.
            window_s: Seconds of the window; 0: of the whole run.
        """
        self.most, self.window_s = most, window_s
        self._times: list[float] = []
        self._fruitless = 0

    def lost(self, now: float, progress: bool) -> float | None:
        """Count a loss.

        Args:
            now: Monotonic seconds.
            progress: Something was completed since the loss before.

        Returns:
            Seconds to wait before the restart; None when no restart is left.
        """
        if self.window_s:
            self._times = [then for then in self._times if now - then < self.window_s]
        if len(self._times) >= self.most:
            return None
        self._times.append(now)
        self._fruitless = 0 if progress else self._fruitless + 1
        return min(LONGEST_WAIT_S, 2.0**self._fruitless) if self._fruitless else 0.0

    @property
    def spent(self) -> str:
        """The restarts so far, for messages."""
        return f"{len(self._times)} restarts" + (f" within {self.window_s:.0f} s" if self.window_s else "")


class Recovery:
    """Trains to the end, with new learner ranks after each loss; the engines go on.

    Attributes:
        training: The current training.
        checkpoint: What its learner loads, None for the start model.
        started_at: Completed steps when the current training began.
    """

    def __init__(self, config: KrayConfig, workers: Workers, stop: Stop, begin: Begin):
        self.workers, self.stop, self.begin = workers, stop, begin
        self.restarts = Restarts(config.train.max_restarts, config.run.restart_window_s)
        self.training, self.checkpoint = begin()
        self.started_at = 0

    async def train(self) -> None:
        """Train to the last step.

        Raises:
            Stopped: The run was asked to stop; all that was collected has been learned from and saved.
            KrayError: Training cannot go on, or no restart is left.
        """
        while True:
            try:
                await self._until_lost()
                return
            except InfrastructureError as loss:
                await self._go_back(loss)

    async def _until_lost(self) -> None:
        training, learners = self.training, self.workers.learners
        self.started_at = training.state.step
        await self.workers.start(self.checkpoint, training.version, training.components.probe)
        working, watching = asyncio.ensure_future(training.train()), asyncio.ensure_future(learners.watch())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            # The watch ends only by an error.
            await (working if working.done() else watching)
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _go_back(self, loss: InfrastructureError) -> None:
        """Make a training from the newest checkpoint; engines and workers stay."""
        reached = self.training.state.step
        # First: calls to a rank that hangs would wait for its timeout.
        self.workers.drop_learners()
        # What all ranks have written is kept.
        with contextlib.suppress(Exception):
            await self.training.checkpoints.written()
        wait_s = self.restarts.lost(time.monotonic(), reached > self.started_at)
        if wait_s is None:
            raise KrayError(
                f"{loss}; the learner is not started again after {self.restarts.spent} (train.max_restarts)"
            ) from loss
        self.training, self.checkpoint = self.begin()
        self.workers.restarts["learner"] += 1
        step = self.training.state.step
        again = f"repeating steps {step + 1} to {reached}" if reached > step else "no step is lost"
        soon = f" in {wait_s:.0f} s" if wait_s else ""
        logger.warning(f"lost the learner; restarting{soon} from step {step}, {again}: {loss}")
        await self.stop.unless(asyncio.sleep(wait_s))
