"""A driver that writes down what it does while faults are injected; the injector and the audit read this log.

watch.jsonl, a line an event: t (seconds of the machine's monotonic clock, since wall clocks are made to jump), life (drivers
before this one), event, and
    phase    name: collect | update | sync | rest, which has begun; step
    state    serving, losses (of engines), learner (restarts), scorer (restarts), unsaved (failed saves), when one changes
    visits   what came back of a step's prompts, as a comparison writes it down (kray/driver/visits.py)
    learned  step (counted from 1), rollouts: [prompt id, indices] that were trained on; tasks: counters of the schedule
    printed  line
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from kray.driver.actor import Driver, RunConsole
from kray.driver.components import OfferedPrompts
from kray.driver.loop import Training
from kray.driver.visits import visit
from kray.driver.workers import Workers
from kray.rollout.collected import CollectedStep

WATCH = "watch.jsonl"
# File of the run folder: seconds by which the driver's wall clock is wrong.
CLOCK = "clock"
# Seconds between two looks at the workers.
LOOK_S = 0.1


class WallClock:
    """A wall clock in place of `time.time` that a file can make jump.

    Attributes:
        wrong_s: Seconds by which it is wrong.
    """

    def __init__(self, folder: Path):
        self.wrong_s, self._file, self._true = 0.0, folder / CLOCK, time.time
        time.time = self.now

    def now(self) -> float:
        """Return seconds since 1970, as this clock has them."""
        return self._true() + self.wrong_s

    def read(self) -> None:
        """Jump to what the file says."""
        if self._file.is_file():
            self.wrong_s = float(self._file.read_text() or self.wrong_s)


def write(folder: Path, life: int, event: str, **what: Any) -> None:
    """Append a line to watch.jsonl."""
    line = {"t": time.monotonic(), "life": life, "event": event} | what
    with (folder / WATCH).open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """Return all whole lines; a driver that was killed may have left half of one."""
    lines = []
    for line in (folder / WATCH).read_text().splitlines() if (folder / WATCH).is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


class InstrumentedTraining(Training):
    """A training that writes down its phases, visits and steps."""

    async def before_plan(self, step: int, offered: OfferedPrompts) -> None:
        """Write that the step is being collected."""
        self._write("phase", name="collect", step=step)

    async def after_collect(self, step: int, collected: CollectedStep) -> None:
        """Write the step's visits."""
        self._write("visits", **visit(step + 1, collected, {}))

    async def before_update(self) -> None:
        """Write that the learner updates."""
        self._write("phase", name="update", step=self.state.step)

    async def after_update(self, collected: CollectedStep) -> None:
        """Write what was learned from, and that the step is over."""
        schedule = self.workers.pool.schedule
        rollouts = [[group.prompt.id, [r.index for r in group.rollouts]] for group in collected.groups]
        tasks = {name: getattr(schedule, name) for name in ("submitted", "waiting", "running")}
        tasks["ended"] = sum(schedule.ended.values())
        learner = self.workers.restarts["learner"]
        self._write("learned", step=self.state.step, rollouts=rollouts, tasks=tasks, learner=learner)
        self._write("phase", name="rest", step=self.state.step)

    def _write(self, event: str, **what: Any) -> None:
        write(self.store.run_folder, self.workers.restarts["driver"], event, **what)


class InstrumentedWorkers(Workers):
    """Workers that write down weight updates and every change of their state."""

    folder: Path
    clock: WallClock

    async def serve(self, version: int) -> float:
        """Write that weights are being sent, and send them."""
        write(self.folder, self.restarts["driver"], "phase", name="sync", step=version)
        return await super().serve(version)

    async def look(self) -> None:
        """Write every change of the workers' state, for as long as the run lasts."""
        before: dict[str, int] = {}
        while True:
            self.clock.read()
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
        write(self.driver.folder, self.driver.restarts, "printed", line=line)


class InstrumentedDriver(Driver):
    """In place of Driver."""

    training_type, workers_type = InstrumentedTraining, InstrumentedWorkers

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.console, self.clock = InstrumentedConsole(self), WallClock(self.folder)

    def _workers(self) -> Workers:
        workers = super()._workers()
        assert isinstance(workers, InstrumentedWorkers)
        workers.folder, workers.clock = self.folder, self.clock
        self._look = asyncio.ensure_future(workers.look())
        return workers
