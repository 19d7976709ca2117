"""Carries out a comparison in one driver actor: the same engines and one learner, one child after the other.

A child that runs third gives the same results as when it runs first, because each begins with the start model's weights, a
new optimizer and components of its own; engines never go back to an older policy version, so each child's versions follow
on those of the one before. An early end keeps the children that are done; the one under way is repeated next time. A child
that fails by itself is given up (failures.py) and the others go on; what a lost driver costs decides supervision.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kray.cluster.folder_lock import LostLock, Ticket
from kray.compare.controlled import ControlledPlanner
from kray.compare.exact import ExactRates
from kray.compare.failures import failure, give_up, missing, note_under_way, under_way
from kray.compare.method_run import ComparedTraining
from kray.compare.report import write_report
from kray.compare.study import Child, Study, keep
from kray.config import flat, to_yaml
from kray.driver.actor import Driver
from kray.driver.components import Components, load_components, unlearned
from kray.driver.console import Summary
from kray.driver.output import Console, logged_to
from kray.driver.prepare import LoadedPrompts
from kray.driver.state import RunState
from kray.driver.stop import Stopped
from kray.driver.workers import Workers
from kray.errors import ConfigError, InfrastructureError, KrayError, StorageError
from kray.monitor.durations import format_duration
from kray.text import legible
from kray.tracking import Tracker, end_run, locate, prompts_digest
from kray.train.checkpoints import CheckpointStore

logger = logging.getLogger(__name__)

# Seconds between two lines about the child that is being trained.
LINE_EVERY_S = 20.0
# File of the comparison's folder that names its MLflow run.
PARENT = "parent.json"


@dataclass(frozen=True)
class Outcome:
    """How a comparison ended.

    Attributes:
        folder: Of the results.
        done: Children that are done.
        of: All children.
        stopped: Why it ended early, "" if it did not.
        page: The report, "" when no child is done.
        open_command: How to open it in MLflow.
        verdicts: As dicts, see kray.compare.verdicts.Verdict.
        failed: Runs that were given up -> why.
    """

    folder: str
    done: int
    of: int
    stopped: str
    page: str
    open_command: str
    verdicts: list[dict[str, Any]]
    failed: dict[str, str] = field(default_factory=dict)


class Comparison(Driver):
    """The actor of a comparison; jobs/compare.py calls `compare` once."""

    def __init__(
        self,
        study: Study,
        model_path: str,
        tags: dict[str, str],
        prompts: LoadedPrompts | None = None,
        ticket: Ticket | None = None,
        restarts: int = 0,
    ):
        super().__init__(study.base, model_path, str(study.folder), "", tags, restarts, prompts, ticket)
        self.study = study
        self._version = 0
        self._took: list[float] = []
        self._origin: dict[str, str] = {}

    async def compare(self) -> AsyncIterator[str | Outcome]:
        """Run the children that are not done and write the report.

        Yields:
            Lines, and an Outcome at the end.
        """
        async for item in self._stream(self._compare()):
            yield item

    async def _compare(self) -> Outcome:
        study, todo = self.study, [child for child in self.study.todo() if not failure(child)]
        keep(study)
        await asyncio.to_thread(self._end_lost_run)
        logger.info(f"{study.folder}: {study.describe()}; {len(study.children) - len(todo)} done, {len(todo)} to run")
        parent = await asyncio.to_thread(self._open_parent)
        ending = "FAILED"
        try:
            try:
                if todo:
                    await self._run_all(todo, parent)
            except Stopped:
                logger.info(f"stopping: {self._stop.reason}; done children stay done, the one under way begins anew")
            report = await asyncio.to_thread(write_report, study)
            for file in report.files:
                parent.log_file(file, "report")
            ending = "KILLED" if self._stop.reason else "FINISHED"
            done = len(study.children) - len(study.todo())
            return Outcome(
                str(study.folder),
                done,
                len(study.children),
                self._stop.reason,
                report.page,
                parent.open_command,
                report.verdicts,
                {name: why for name, why in missing(study).items() if why},
            )
        finally:
            await asyncio.to_thread(parent.finish, ending)

    def _end_lost_run(self) -> None:
        """Mark the MLflow run as failed that a driver which was lost has left."""
        lost = under_way(self.study)
        if lost is not None and lost.mlflow_run_id:
            end_run(locate(self.study.base.track.uri, self.study.folder), lost.mlflow_run_id, "FAILED")
        note_under_way(self.study, None)

    def _open_parent(self) -> Tracker:
        """Open the MLflow run that the children belong to; the same one when the comparison is continued."""
        study, file = self.study, self.study.folder / PARENT
        known = json.loads(file.read_text())["mlflow_run_id"] if file.is_file() else None
        params = flat(study.base) | {"methods": ",".join(study.methods), "seeds": ",".join(map(str, study.seeds))}
        tracker = Tracker(
            replace(study.base.track, system_metrics=False),
            study.folder,
            study.folder.name,
            params,
            self.tags | {"kray.kind": "comparison", "model": self.model_path},
            to_yaml(study.base),
            known,
            0 if known else None,
            check=self.fence.check,
        )
        file.write_text(json.dumps({"mlflow_run_id": tracker.mlflow_run_id}) + "\n")
        return tracker

    async def _run_all(self, todo: list[Child], parent: Tracker) -> None:
        """Start the workers and run the children one after the other."""
        study = self.study
        start = study.folder / f".start-{os.getpid()}"
        workers = self._workers()
        try:
            loaded, self._prompts = self._prompts, None
            components = load_components(study.widest, self.model_path, loaded)
            await workers.start(None, self._next_versions(0), components.probe)
            assert workers.pool.published is not None
            variables = [source.chat_template_kwargs for source in (study.base.prompts.train, study.base.prompts.test)]
            prompts = prompts_digest([prompt for prompt, _ in (*components.train, *components.test)], *variables)
            self._origin = {
                "policy": await workers.weights_checksum(),
                "prompts": prompts,
                "commit": self.tags.get("git_commit", ""),
            }
            study.check_origin(self._origin)
            # Drivers that were lost may have left theirs.
            for left in study.folder.glob(".start-*"):
                shutil.rmtree(left, ignore_errors=True)
            await workers.learners.save(start)
            for number, child in enumerate(todo, 1):
                place = f"{number}/{len(todo)}"
                await self._try_child(child, workers, components, start, parent.mlflow_run_id, place)
                left_s = sorted(self._took)[len(self._took) // 2] * (len(todo) - number) if self._took else 0.0
                if number < len(todo) and left_s:
                    logger.info(f"  {len(todo) - number} to run, about {format_duration(left_s)}")
        finally:
            await workers.close()
            shutil.rmtree(start, ignore_errors=True)

    def _next_versions(self, count: int) -> int:
        """Return the first of count + 1 policy versions that were never served."""
        first, self._version = self._version, self._version + count + 1
        return first

    async def _try_child(
        self, child: Child, workers: Workers, shared: Components, start: Path, parent_id: str, place: str
    ) -> None:
        """Run a child; give it up where it fails by itself, which it would do again."""
        try:
            await self._run_child(child, workers, shared, start, parent_id, place)
        except Stopped:
            note_under_way(self.study, None)
            raise
        except (ConfigError, InfrastructureError, StorageError, LostLock):
            # Of all runs, or worth another driver.
            raise
        except KrayError as error:
            if not workers.pool.serving:
                # The other runs would end like this one.
                raise
            self.fence.check()
            give_up(child, str(error), 1)
            logger.warning(f"[{place}] {child.name} failed, the others go on: {error}")
        note_under_way(self.study, None)

    async def _run_child(
        self, child: Child, workers: Workers, shared: Components, start: Path, parent_id: str, place: str
    ) -> None:
        """Train one child from the start model on and mark it as done."""
        started = time.monotonic()
        shutil.rmtree(child.folder, ignore_errors=True)
        child.folder.mkdir(parents=True)
        note_under_way(self.study, child)
        console = ChildConsole(self.console, f"[{place}] {child.name}: ", child.folder / "log.txt")
        with logged_to(console):
            summary, run_id = await self._train_child(child, workers, shared, start, parent_id, place, console)
        # The figures are what is asked of a comparison.
        shutil.rmtree(child.folder / "checkpoints", ignore_errors=True)
        took_s = time.monotonic() - started
        self.fence.check()
        child.finish({"took_s": took_s, "mlflow_run_id": run_id, "summary": shown(summary), "origin": self._origin})
        self._took.append(took_s)
        before, after = summary.accuracy_before, summary.accuracy_after
        logger.info(f"[{place}] {child.name}: sampled accuracy {before:.3f} -> {after:.3f}, {format_duration(took_s)}")

    async def _train_child(
        self,
        child: Child,
        workers: Workers,
        shared: Components,
        start: Path,
        parent_id: str,
        place: str,
        console: ChildConsole,
    ) -> tuple[Summary, str]:
        """Return how the child's training ended, and its MLflow run."""
        config = child.config
        components = unlearned(shared, config)
        if child.controls.knows_plan or child.controls.shuffle_budgets:
            components = replace(components, planner=ControlledPlanner.under(child.controls, config))
        variables = config.prompts.train.chat_template_kwargs
        state = RunState(prompts=prompts_digest([prompt for prompt, _ in components.train], variables))
        tracker = await asyncio.to_thread(self._open_child, child, parent_id)
        state.mlflow_run_id = tracker.mlflow_run_id
        note_under_way(self.study, child, state.mlflow_run_id)
        ending = "FAILED"
        try:
            base = self._next_versions(config.run.steps)
            await self._stop.unless(begin(workers, child, start, base, components))
            store = CheckpointStore(child.folder, 1, self.fence.check)
            training = ComparedTraining(config, components, state, workers, tracker, store, self._stop, console, base)
            training.control(child.controls)
            if self.study.exact:
                tokens = config.rollout.max_response_tokens
                training.exact = ExactRates(workers.learners, components.tokenizer, components.stop_ids, tokens)
            self.live_status.begin(training, child.folder, f"{place}, {child.name}")
            await training.train()
            ending = "FINISHED"
        except Stopped:
            ending = "KILLED"
            raise
        finally:
            await asyncio.to_thread(tracker.finish, ending)
        return training.summary(), state.mlflow_run_id

    def _open_child(self, child: Child, parent_id: str) -> Tracker:
        tags = {"mlflow.parentRunId": parent_id, "kray.method": child.method, "kray.seed": child.seed}
        config = child.config
        return Tracker(
            config.track,
            child.folder,
            child.name,
            flat(config),
            self.tags | tags | {"model": self.model_path},
            to_yaml(config),
            on_step=self.live_status.record,
            check=self.fence.check,
        )


async def begin(workers: Workers, child: Child, start: Path, version: int, components: Components) -> None:
    """Bring the workers into the state of a new process: the start model, a new optimizer, engines that serve `version`."""
    await workers.learners.configure(child.config.train, child.config.run.steps)
    await workers.learners.load(start)
    await workers.serve(version)
    await workers.restore_opponents(None)


def shown(summary: Summary) -> dict[str, Any]:
    """Return what done.json holds of a child's summary."""
    return {
        key: getattr(summary, key)
        for key in (
            "steps",
            "accuracy_before",
            "accuracy_after",
            "greedy_after",
            "rollouts",
            "tokens",
            "elapsed_s",
            "engine_deaths",
        )
    }


class ChildConsole(Console):
    """Writes every line of a child to a file; prints warnings at once, and of the other lines the newest now and then."""

    def __init__(self, console: Console, prefix: str, file: Path):
        self.console, self.prefix, self.file = console, prefix, file
        self._printed = time.monotonic()

    def print(self, line: str, urgent: bool = False) -> None:
        """Write the line; print it with the child's prefix when it is its turn."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(legible(line) + "\n")
        now = time.monotonic()
        if urgent or now - self._printed > LINE_EVERY_S:
            self._printed = now
            self.console.print(self.prefix + line)
