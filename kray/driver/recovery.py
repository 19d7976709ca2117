"""How a run goes on after a loss.

- An InfrastructureError (kray/errors.py): a learner rank or the driver died or hung. The run goes back to its newest
  checkpoint and on from there, as often as its restarts allow. Engines, scorers and saves mend themselves where they live.
- Any other KrayError is of the configuration or the data: trying again would not help, and the run ends with it.
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

LONGEST_WAIT_S = 60.0
Begin = Callable[[], tuple[Training, Path | None]]  # a training, and the checkpoint that its learner is to load


class Restarts:
    """A budget of restarts with back-off. Pure: `now` in seconds, monotonic.

    At most `most` within window_s (0: ever). The first after some progress comes at once, those that follow without any
    after 2, 4, ... 60 s.
    """

    def __init__(self, most: int, window_s: float):
        self.most, self.window_s = most, window_s
        self._times: list[float] = []
        self._fruitless = 0

    def lost(self, now: float, progress: bool) -> float | None:
        """Seconds to wait before the next try, None when there is none. progress: since the one before."""
        if self.window_s:
            self._times = [then for then in self._times if now - then < self.window_s]
        if len(self._times) >= self.most:
            return None
        self._times.append(now)
        self._fruitless = 0 if progress else self._fruitless + 1
        return min(LONGEST_WAIT_S, 2.0**self._fruitless) if self._fruitless else 0.0

    @property
    def spent(self) -> str:
        """For people: how many there were."""
        return f"{len(self._times)} restarts" + (f" within {self.window_s:.0f} s" if self.window_s else "")


class Recovery:
    """Trains to the end over as many learners as it takes, on one workers whose engines live on.

    begin: makes a Training from the newest checkpoint, or from the start where there is none. training: the current one.
    """

    def __init__(self, config: KrayConfig, workers: Workers, stop: Stop, begin: Begin):
        self.workers, self.stop, self.begin = workers, stop, begin
        self.restarts = Restarts(config.train.max_restarts, config.run.restart_window_s)
        self.training, self.checkpoint = begin()
        self.started_at = 0  # step of the latest start

    async def train(self) -> None:
        """Raises Stopped, with all that was collected learned from and saved; KrayError."""
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
            await (working if working.done() else watching)  # the watch only ever raises
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _go_back(self, loss: InfrastructureError) -> None:
        """Everything as the newest checkpoint has it, but for engines and ranks. Raises KrayError, Stopped."""
        reached = self.training.state.step
        self.workers.drop_learners()  # first: what waits for a rank that hangs would wait long
        with contextlib.suppress(Exception):
            await self.training.checkpoints.written()  # what all ranks have written is kept
        wait_s = self.restarts.lost(time.monotonic(), reached > self.started_at)
        if wait_s is None:
            raise KrayError(
                f"{loss}; the learner is not started again after {self.restarts.spent} (train.max_restarts)"
            ) from loss
        self.training, self.checkpoint = self.begin()
        self.workers.restarts["learner"] += 1
        step = self.training.state.step
        again = f"steps {step + 1} to {reached} are done again" if reached > step else "no step is lost"
        soon = f" in {wait_s:.0f} s" if wait_s else ""
        logger.warning(f"learner lost, starting anew{soon} from step {step}; {again}: {loss}")
        await self.stop.unless(asyncio.sleep(wait_s))
