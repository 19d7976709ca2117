"""The driver actor: makes the components of a run, trains or evaluates, and ends what it started.

The loop is kray/driver/loop.py. The job that started the run gets a line at each event and step, and a result at the end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ray

from kray.cluster.folder_lock import Ticket
from kray.cluster.process_identity import this_process
from kray.config import KrayConfig, flat, to_yaml
from kray.driver.components import Components, load_components, unlearned
from kray.driver.console import Summary, start_line
from kray.driver.evaluation import Evaluation, judge
from kray.driver.fence import Fence
from kray.driver.loop import Training
from kray.driver.model_registry import log_trained
from kray.driver.output import Console, logged_to
from kray.driver.prepare import LoadedPrompts
from kray.driver.recovery import Begin, Recovery
from kray.driver.restore import reading
from kray.driver.state import RunState, check_same_prompts
from kray.driver.stop import Stop, Stopped
from kray.driver.workers import Workers
from kray.errors import ConfigError, InfrastructureError, KrayError
from kray.monitor.live import LiveStatus
from kray.text import legible, make_legible, take_any_text
from kray.tracking import Tracker, prompts_digest
from kray.tracking.mlflow_store import UnknownRun
from kray.train.checkpoints import CheckpointStore, newest_checkpoint, newest_intact, read_state

logger = logging.getLogger(__name__)

# Seconds that a driver which was started again waits for MLflow's server, and between two attempts.
SERVER_WAIT_S, SERVER_POLL_S = 600.0, 5.0
# The step of a run that is resumed before any step was saved.
BEGINNING = -1
# File of the run folder that names the MLflow run, for the time before the first checkpoint.
RUN = "run.json"


class RunConsole(Console):
    """The console of a driver: prints to the actor's log, and streams to whoever started the run."""

    def __init__(self, status: LiveStatus):
        self._status = status
        # Of the coroutine that reads `lines`, once there is one.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()

    def print(self, line: str, urgent: bool = False) -> None:
        """Print one line; any thread may call this."""
        # Ray sends no text with halves of characters.
        line = legible(line)
        super().print(line, urgent)
        self._status.last_line = line
        if self._loop is None or threading.get_ident() == self._thread:
            self._queue.put_nowait(line)
        else:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, line)

    def close(self) -> None:
        """End `lines` after what has been printed until now."""
        self._queue.put_nowait(None)

    async def lines(self) -> AsyncIterator[str]:
        """Yield every line until `close`."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        while (line := await self._queue.get()) is not None:
            yield line


class Driver:
    """The actor of a run; jobs/train.py calls `run` once, jobs/evaluate.py `judge`.

    Attributes:
        training_type: Class of the training loop, for subclasses that observe it.
        workers_type: Class of the workers, likewise.
        fence: Of what this driver writes.
    """

    fence = Fence()

    training_type: type[Training] = Training
    workers_type: type[Workers] = Workers

    def __init__(
        self,
        config: KrayConfig,
        model_path: str,
        run_folder: str,
        checkpoint: str,
        tags: dict[str, str],
        restarts: int = 0,
        prompts: LoadedPrompts | None = None,
        ticket: Ticket | None = None,
    ):
        """Start nothing.

        Args:
            config: The run's configuration.
            model_path: The start model's folder or hub id.
            run_folder: The folder of the run's results.
            checkpoint: The checkpoint to resume from, "" for none.
            tags: Tags of the MLflow run.
            restarts: How many drivers of this run were lost before.
            prompts: The prompts as the job has loaded them; None: they are read from their sources.
            ticket: Of the run folder's lock, which the job holds; None: the folder is not locked.
        """
        # Not in the runtime_env, which engines and ranks would inherit.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        take_any_text(sys.stdout, sys.stderr)
        self.config, self.model_path, self.folder = config, model_path, Path(run_folder)
        self.checkpoint, self.tags, self.restarts = Path(checkpoint) if checkpoint else None, tags, restarts
        self._prompts, self._ticket = prompts, ticket
        self._stop = Stop()
        self.live_status = LiveStatus(config, self.folder)
        self.console = RunConsole(self.live_status)

    async def _stream(self, work: Any) -> AsyncIterator[Any]:
        """Yield the lines that are printed or logged while the work goes on, then its result."""
        with logged_to(self.console):
            working, watching = asyncio.create_task(self._fenced(work)), asyncio.create_task(self.live_status.run())
            working.add_done_callback(lambda _: self.console.close())
            try:
                async for line in self.console.lines():
                    yield line
                yield working.result()
            except Exception as error:
                # Ray sends its message to the job, which no text that a policy wrote may prevent.
                make_legible(error)
                raise
            finally:
                working.cancel()
                watching.cancel()
                await asyncio.gather(working, watching, return_exceptions=True)

    async def _fenced(self, work: Any) -> Any:
        """Return the result of the work, which is given up when the folder's lock is lost."""
        try:
            self.fence = Fence.of(self._ticket, f"driver-{self.restarts}")
        except KrayError:
            work.close()
            raise
        try:
            return await self.fence.unless_lost(work)
        finally:
            self.fence.close()

    async def stop(self, reason: str) -> None:
        """Ask the run to save and end; return at once."""
        self._stop.ask(reason)

    @ray.method(concurrency_group="status")
    async def alive(self) -> dict[str, Any]:
        """Return what identifies this process, as a sign of life."""
        return this_process()

    @ray.method(concurrency_group="status")
    async def status(self) -> dict[str, Any]:
        """Return the run's status, see kray.monitor.status, also while a step keeps the driver busy."""
        return self.live_status.status()

    async def run(self) -> AsyncIterator[str | Summary]:
        """Train.

        Yields:
            A line at each event and step, and a Summary at the end.

        Raises:
            KrayError: The run cannot go on.
        """
        async for item in self._stream(self._run()):
            yield item

    async def judge(self) -> AsyncIterator[str | Evaluation]:
        """Evaluate the policy once.

        Yields:
            Lines, and the Evaluation at the end.

        Raises:
            KrayError: The policy cannot be evaluated, or the run was asked to stop.
        """
        async for item in self._stream(self._judge()):
            yield item

    async def _run(self) -> Summary:
        ending, tracker, workers = "FAILED", None, None
        try:
            components, state = self._load()
            tracker = await self._open_tracker(components, state)
            workers = self._workers()
            run = Recovery(self.config, workers, self._stop, self._training_maker(components, state, workers, tracker))
            try:
                await run.train()
            except Stopped:
                logger.info(f"stopping after step {run.training.state.step}: {self._stop.reason}")
            training = run.training
            if workers.ready:
                await training.checkpoints.finish()
            if not self._stop.reason:
                step = training.state.step
                await log_trained(self.config, workers.learners, self.folder, state.mlflow_run_id, step)
            ending = "KILLED" if self._stop.reason else "FINISHED"
            return training.summary()
        finally:
            if workers is not None:
                await workers.close()
            if tracker is not None:
                await asyncio.to_thread(tracker.finish, ending)

    def _training_maker(self, components: Components, state: RunState, workers: Workers, tracker: Tracker) -> Begin:
        """Return a function that makes a training.

        Its first call takes the given components and state, each later one those of the newest checkpoint, with policy
        versions above all that were served.
        """
        begun = False

        def begin() -> tuple[Training, Path | None]:
            nonlocal begun
            store = CheckpointStore(self.folder, self.config.run.keep_checkpoints, self.fence.check)
            now, at = components, state
            if begun:
                self.checkpoint = newest_intact(newest_checkpoint(self.folder))
                now, at = self._restore(unlearned(components, self.config), state.mlflow_run_id)
                tracker.rewind(BEGINNING if self.checkpoint is None else at.step)
            elif self.checkpoint is not None:
                for name in store.set_aside_after(at.step):
                    logger.info(f"note: {name} is set aside, this run goes on from step {at.step}")
            base = workers.next_version - at.step if begun else 0
            begun = True
            training = self.training_type(self.config, now, at, workers, tracker, store, self._stop, self.console, base)
            self.live_status.begin(training, self.folder)
            return training, self.checkpoint

        return begin

    async def _judge(self) -> Evaluation:
        workers = None
        try:
            components, state = self._load()
            workers = self._workers()
            await workers.start(self.checkpoint, state.step, components.probe)
            logger.info(f"evaluating {len(components.test)} prompts x {self.config.evaluate.samples} responses")
            collector = workers.collector(components)
            return await self._stop.unless(judge(self.config, components, collector, state.step))
        except Stopped:
            raise KrayError(f"the evaluation was stopped {self._stop.reason}") from None
        finally:
            if workers is not None:
                await workers.close()

    def _workers(self) -> Workers:
        label = self.folder.name + (f"-again-{self.restarts}" if self.restarts else "")
        workers = self.workers_type(self.config, self.model_path, label, self._stop)
        workers.restarts["driver"] = self.restarts
        return workers

    def _load(self) -> tuple[Components, RunState]:
        """Load tokenizer, prompts, planner and, on resume, the state; nothing is started."""
        prompts, self._prompts = self._prompts, None
        return self._restore(load_components(self.config, self.model_path, prompts), "")

    def _restore(self, components: Components, mlflow_run_id: str) -> tuple[Components, RunState]:
        """Return components and state as the checkpoint holds them, or those of a new run where there is none."""
        variables = self.config.prompts.train.chat_template_kwargs
        digest = prompts_digest([prompt for prompt, _ in components.train], variables)
        state = RunState(prompts=digest, mlflow_run_id=mlflow_run_id)
        if self.checkpoint is not None:
            with reading(self.checkpoint):
                state = RunState.from_dict(read_state(self.checkpoint))
                check_same_prompts(state, digest)
                components.load(state)
        return components, state

    async def _open_tracker(self, components: Components, state: RunState) -> Tracker:
        """Create the MLflow run, or resume it."""
        resumed, known = (None if self.checkpoint is None else state.step), self.folder / RUN
        if self.restarts and self.checkpoint is None:
            resumed = BEGINNING
            state.mlflow_run_id = json.loads(known.read_text())["mlflow_run_id"] if known.is_file() else ""
        tracker = await self._connect_tracker(state.mlflow_run_id, resumed)
        state.mlflow_run_id = tracker.mlflow_run_id
        known.write_text(json.dumps({"mlflow_run_id": tracker.mlflow_run_id, "mlflow": tracker.where}) + "\n")
        for part, pairs in (("train", components.train), ("test", components.test)):
            tracker.log_dataset(part, [prompt for prompt, _ in pairs], part)
        self.console.print(start_line(self.folder, self.config, len(components.train), len(components.test), resumed))
        return tracker

    async def _connect_tracker(self, mlflow_run_id: str, resumed: int | None) -> Tracker:
        """Return a tracker; a driver that was started again waits for a server that does not answer."""
        tags = self.tags | {"model": self.model_path, "plan.mode": self.config.plan.mode}
        track, folder, name = self.config.track, self.folder, self.folder.name
        known = mlflow_run_id or None
        arguments = (
            track,
            folder,
            name,
            flat(self.config),
            tags,
            to_yaml(self.config),
            known,
            resumed,
            self.live_status.record,
            self.fence.check,
        )
        deadline = time.monotonic() + (SERVER_WAIT_S if self.restarts else 0.0)
        while True:
            try:
                return await asyncio.to_thread(Tracker, *arguments)
            except UnknownRun as error:
                known_at = json.loads(file.read_text()).get("mlflow") if (file := self.folder / RUN).is_file() else None
                raise ConfigError(f"{error}; it was recorded at {known_at or 'another place'}") from error
            except InfrastructureError as error:
                if time.monotonic() > deadline:
                    raise
                logger.info(f"waiting for MLflow: {error}")
                await self._stop.unless(asyncio.sleep(SERVER_POLL_S))
