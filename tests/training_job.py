"""jobs/train.py as a process that leads a group of its own, whose lines are read while it works."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from kray.faults.jobs import command_of
from kray.train.checkpoints import newest_checkpoint, read_state

ROOT = Path(__file__).parents[1]
SMALL = (
    "run.name=batch",
    "run.checkpoint_every=2",
    "model.tiny=null",
    "prompts.per_step=8",
    "prompts.train.size=64",
    "prompts.test.size=8",
    "plan.budget=32",
    "plan.candidates=1",
    "rollout.max_sequences=32",
    "rollout.kv_cache_gib=0.05",
    "evaluate.every=0",
    "evaluate.samples=1",
    "track.system_metrics=false",
)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ""}


def command(*overrides: str, script: str = "jobs/train.py") -> list[str]:
    """Return the command of a small training."""
    return [sys.executable, script, "--config", "configs/tiny.yaml", *SMALL, *overrides]


class Job:
    """A running training; its lines are read in a thread."""

    def __init__(self, *overrides: str, env: Mapping[str, str] | None = None, script: str = "jobs/train.py"):
        self.process = subprocess.Popen(
            command(*overrides, script=script),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=ENVIRONMENT | dict(env or {}),
        )
        self.lines: list[str] = []
        self._reading = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")))
        self._reading.start()

    def wait_for(self, pattern: str, limit_s: float = 240.0) -> re.Match[str]:
        """Return the first match among the lines."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.text):
                return found
            assert self.process.poll() is None, self.text
            time.sleep(0.1)
        raise AssertionError(f"no {pattern!r} within {limit_s:.0f} s:\n{self.text}")

    def end(self, limit_s: float = 120.0) -> int:
        """Return the exit code."""
        code = self.process.wait(limit_s)
        self._reading.join(20)
        return code

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def descendants(self) -> dict[int, str]:
        """Return the processes that the job has started, and those that they have, with their commands."""
        found, parents = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                stat = (folder / "stat").read_text()
                parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
                found[int(folder.name)] = command_of(int(folder.name))

        def started_here(pid: int) -> bool:
            while pid in parents and pid != self.process.pid:
                pid = parents[pid]
            return pid == self.process.pid

        return {pid: command for pid, command in found.items() if pid != self.process.pid and started_here(pid)}

    def find(self, part: str) -> int:
        """Return the one process whose command holds this."""
        (pid,) = [pid for pid, command in self.descendants().items() if part in command]
        return pid

    def kill(self) -> None:
        """Kill what is left of the job."""
        if self.process.poll() is None:
            for pid in [self.process.pid, *self.descendants()]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(20)


def gone(processes: dict[int, str], limit_s: float = 15.0) -> dict[int, str]:
    """Return which of these processes are left after a while, as they were."""
    deadline = time.monotonic() + limit_s
    left = dict(processes)
    while left and time.monotonic() < deadline:
        for pid, command in list(left.items()):
            now = command_of(pid)
            if not now or now.split()[:1] != command.split()[:1]:
                del left[pid]
        time.sleep(0.2)
    return left


def saved_step(job: Job) -> int:
    """Return the step of the checkpoint that a job's last lines name, with the command that resumes."""
    folder = re.search(r"results +(\S+)", job.text)[1]
    assert f"resume={folder}" in job.text
    return read_state(newest_checkpoint(Path(folder)))["step"]
