"""A driver that writes down what it does while faults come: the log that injecting and auditing go by.

watch.jsonl, a line an event: t (seconds since 1970), life (drivers before this one), event, and
    phase    name: collect | update | sync | rest, which has begun; step
    state    serving, losses (of engines), learner (restarts), scorer (restarts), unsaved (failed saves), when one changes
    visits   what came back of a step's prompts, as a comparison writes it down (kray/compare/method_run.py)
    learned  step (counted from 1), rollouts: [prompt id, indices] that were trained on; tasks: counters of the schedule
    said     line
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from kray.compare.method_run import visit
from kray.driver.actor import Driver, RunConsole
from kray.driver.loop import Training
from kray.driver.recorder import Carried
from kray.driver.workers import Workers

WATCH = "watch.jsonl"
LOOK_S = 0.1


def write(folder: Path, life: int, event: str, **what: Any) -> None:
    line = {"t": time.time(), "life": life, "event": event} | what
    with (folder / WATCH).open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """All whole lines; a driver that was killed may have left half of one."""
    lines = []
    for line in (folder / WATCH).read_text().splitlines() if (folder / WATCH).is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


class InstrumentedTraining(Training):
    """Training that tells its phases, visits and steps."""

    def tell(self, event: str, **what: Any) -> None:
        write(self.store.run_folder, self.workers.restarts["driver"], event, **what)

    async def collect(self, step: int) -> Carried:
        self.tell("phase", name="collect", step=step)
        carried = await super().collect(step)
        self.tell("visits", **visit(step + 1, carried, {}))
        return carried

    async def _learn(self, carried: Carried, started: float) -> None:
        self.tell("phase", name="update", step=self.state.step)
        await super()._learn(carried, started)
        schedule = self.workers.pool.schedule
        groups = [[group.prompt.id, [r.index for r in group.rollouts]] for group in carried.collected.groups]
        tasks = {name: getattr(schedule, name) for name in ("submitted", "waiting", "running")}
        tasks["ended"] = sum(schedule.ended.values())
        learner = self.workers.restarts["learner"]
        self.tell("learned", step=self.state.step, rollouts=groups, tasks=tasks, learner=learner)
        self.tell("phase", name="rest", step=self.state.step)


class InstrumentedWorkers(Workers):
    """A workers that tells when weights travel, and every change of its standing."""

    folder: Path

    async def serve(self, version: int, probe: tuple[int, ...]) -> float:
        write(self.folder, self.restarts["driver"], "phase", name="sync", step=version)
        return await super().serve(version, probe)

    async def look(self) -> None:
        before: dict[str, int] = {}
        while True:
            pool = self.pool
            now = {"serving": pool.serving, "losses": pool.losses + pool.preemptions, "scorer": self.scorer.restarts}
            now |= {
                "learner": self.restarts["learner"],
                "retried": pool.schedule.retried,
                "timeouts": self.scorer.timeouts,
            }
            now["failures"] = self.scorer.failures
            if now != before:
                write(self.folder, self.restarts["driver"], "state", **now)
                before = now
            await asyncio.sleep(LOOK_S)


class InstrumentedConsole(RunConsole):
    """A console that writes down every line."""

    def __init__(self, driver: Driver):
        super().__init__(driver.live_status)
        self.driver = driver

    def print(self, line: str, urgent: bool = False) -> None:
        """Print one line and write it down."""
        super().print(line, urgent)
        write(self.driver.folder, self.driver.restarts, "said", line=line)


class InstrumentedDriver(Driver):
    """In place of Driver."""

    training_type, workers_type = InstrumentedTraining, InstrumentedWorkers

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.console = InstrumentedConsole(self)

    def _workers(self) -> Workers:
        workers = super()._workers()
        assert isinstance(workers, InstrumentedWorkers)
        workers.folder = self.folder
        self._look = asyncio.ensure_future(workers.look())
        return workers
