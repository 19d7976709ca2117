"""A training whose jobs are hit so that they end, and resumed each time, until it is done; see jobs/bench_chaos.py.

Each job is jobs/train.py, as a process group with a Ray of its own, one engine and one learner rank: so the run must equal,
bit for bit, one that was left alone. A job must end as docs/fault-tolerance.md says, and no process of it may be left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from kray.faults.compared import differences
from kray.faults.unwritable import read_only
from kray.train.checkpoints import newest_checkpoint

logger = logging.getLogger(__name__)

# Kind -> exit code of the job that it ends; None: the job goes on.
KINDS: dict[str, int | None] = {
    "raylet killed": 1,
    "GCS killed": 1,
    "job killed": -signal.SIGKILL,
    "SIGTERM to the group": 0,
    "SIGINT to the group": 0,
    "SIGHUP to the group": 0,
    "run folder read-only": 1,
    "second job in the folder": None,
    "job's driver stopped": None,
}
PARTS = {"raylet killed": "raylet/raylet", "GCS killed": "gcs/gcs_server"}
SIGNALS = {f"{name} to the group": getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP")}
# Seconds for a job to start and to do its steps, to end after a fault, and for its processes to end.
START_S, END_S, GONE_S = 300.0, 90.0, 30.0
# Seconds for the processes of a job that was killed: two of Ray's try for a minute to tell its GCS.
KILLED_GONE_S = 90.0
# Seconds for a step, at most.
STEP_S = 5.0
# Seconds for which a driver is stopped: above those after which the job reports it.
STOPPED_S = 20.0
# Steps of a run for each fault: more than are done while a second job is refused.
STEPS = 40
SETTINGS = (
    "run.name=jobs",
    "run.checkpoint_every=2",
    "rollout.engines=1",
    "train.ranks=1",
    "reward.verifier=exact",
    "reward.options={}",
    "evaluate.every=0",
    # Fewer steps than lie between two faults.
    "run.max_failed_saves=1",
)


@dataclass
class Ended:
    """A fault, what the job said in the end, and how long it took until it had ended or was over it."""

    kind: str
    step: int
    said: str = ""
    took_s: float | None = None
    resumed_s: float | None = None


def plan_endings(kinds: list[str], count: int, steps: int, seed: int) -> list[Ended]:
    """Return faults of all kinds in turn, in random order, at random steps with a few between two of them."""
    rng = Random(seed)
    chosen = [kinds[i % len(kinds)] for i in range(count)]
    rng.shuffle(chosen)
    width = max(4, steps // (count + 1))
    return [Ended(kind, i * width + rng.randint(3, max(3, width // 2))) for i, kind in enumerate(chosen)]


class Job:
    """A running jobs/train.py that leads a process group; its lines are read in a thread."""

    def __init__(self, config: Path, overrides: list[str]):
        command = [sys.executable, "jobs/train.py", "--config", str(config), *SETTINGS, *overrides]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env=environment(),
            # Ignored signals are inherited, as SIGHUP is under nohup.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        read = iter(self.process.stdout.readline, "")
        self._reading = threading.Thread(target=lambda: self.lines.extend(read), daemon=True)
        self._reading.start()

    @property
    def text(self) -> str:
        """What the job has printed."""
        return "".join(self.lines)

    @property
    def step(self) -> int:
        """The newest step that was printed."""
        return max((int(step) for step in re.findall(r"^step +(\d+)/", self.text, re.M)), default=0)

    def until(self, reached: Any, limit_s: float) -> bool:
        """Wait until something is so, or the job has ended; return whether it is so."""
        deadline = time.monotonic() + limit_s
        while not reached() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return bool(reached())

    def end(self, limit_s: float) -> int | None:
        """Return the exit code, None where the job does not end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(limit_s)
            self._reading.join(GONE_S)
            return code
        return None

    def started(self) -> dict[int, str]:
        """Return the processes that the job has started, and those that they have, with their commands."""
        commands, parents = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(folder.name)] = command_of(int(folder.name))

        def mine(pid: int) -> bool:
            while pid in parents and pid != self.process.pid:
                pid = parents[pid]
            return pid == self.process.pid

        return {pid: command for pid, command in commands.items() if pid != self.process.pid and mine(pid)}

    def find(self, part: str) -> int | None:
        """Return a process of the job whose command holds this."""
        return next((pid for pid, command in self.started().items() if part in command), None)

    def kill(self) -> None:
        """End the job and all that it has started."""
        for pid in [self.process.pid, *self.started()] if self.process.poll() is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(GONE_S)


def environment() -> dict[str, str]:
    """Return the environment of a job that starts a Ray of its own and records in its run folder."""
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    left = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return left | {"PYTHONPATH": path}


def command_of(pid: int) -> str:
    """Return the command line of a process, "" when it is gone or only its parent's wait is left of it."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def left_over(processes: dict[int, str], limit_s: float = GONE_S) -> list[str]:
    """Return the commands of processes that have not ended after a while."""
    deadline = time.monotonic() + limit_s
    left = {pid: command for pid, command in processes.items() if command}
    while left and time.monotonic() < deadline:
        # Ray's processes change what follows their program's name.
        left = {pid: name for pid, name in left.items() if command_of(pid).split()[:1] == name.split()[:1]}
        time.sleep(0.2)
    return sorted(left.values())


class Resumed:
    """A training under faults that end its jobs."""

    def __init__(self, config: Path, folder: Path, model: str, steps: int):
        self.config, self.folder, self.steps = config, folder, steps
        self.overrides = [f"model.path={model}", "model.tiny=null", f"run.dir={folder}", f"run.steps={steps}"]
        self.problems: list[str] = []
        self.restarts = 0

    @property
    def run(self) -> Path:
        """The run folder."""
        return next(path for path in sorted(self.folder.glob("jobs-*")) if path.is_dir())

    def hit(self, faults: list[Ended]) -> None:
        """Run to the last step through all faults; problems are noted."""
        job = self._start()
        try:
            for fault in faults:
                job = self._through(job, fault)
                logger.info(f"fault at step {fault.step}: {fault.kind}, {fault.said}")
            code = job.end(START_S + STEP_S * self.steps)
            if code != 0:
                self.problems.append(f"the last job ended with {code}, not 0: {job.text[-2000:]}")
        finally:
            job.kill()

    def _start(self, *overrides: str) -> Job:
        return Job(self.config, [*self.overrides, *overrides])

    def _through(self, job: Job, fault: Ended) -> Job:
        """Inject a fault, check how the job ends, and return the job that goes on."""
        wanted = KINDS[fault.kind]
        saved = job.until(lambda: job.step >= fault.step and newest_checkpoint(self.run) is not None, START_S)
        if not saved:
            self.problems.append(f"step {fault.step} was not reached before {fault.kind!r}: {job.text[-2000:]}")
            return job
        started, began = job.started(), time.monotonic()
        with self._injected(job, fault):
            if wanted is None:
                fault.took_s = time.monotonic() - began
                return job
            code = job.end(END_S)
        fault.took_s = time.monotonic() - began
        fault.said = (job.text.strip().splitlines() or [""])[-1][:200]
        if code != wanted:
            self.problems.append(f"{fault.kind}: ended with {code}, not {wanted}: {job.text[-2000:]}")
        if "Traceback" in job.text:
            self.problems.append(f"{fault.kind}: ended with a traceback: {job.text[-2000:]}")
        if code != -signal.SIGKILL and f"resume={self.run}" not in job.text:
            self.problems.append(f"{fault.kind}: no command that resumes was printed")
        if left := left_over(started, KILLED_GONE_S if code == -signal.SIGKILL else GONE_S):
            self.problems.append(f"{fault.kind}: processes are left: {', '.join(left)[:300]}")
        job.kill()
        self.restarts += 1
        again, before = self._start("resume=auto"), time.monotonic()
        if again.until(lambda: again.step > 0, START_S):
            fault.resumed_s = time.monotonic() - before
        return again

    @contextlib.contextmanager
    def _injected(self, job: Job, fault: Ended) -> Iterator[None]:
        """Inject a fault; what must be undone is undone in the end."""
        if fault.kind in PARTS:
            pid = job.find(PARTS[fault.kind])
            if pid is None:
                self.problems.append(f"{fault.kind}: there is no {PARTS[fault.kind]}")
                job.process.terminate()
            else:
                os.kill(pid, signal.SIGKILL)
        elif fault.kind == "job killed":
            job.process.kill()
        elif fault.kind in SIGNALS:
            # As timeout and docker stop do: the process, and then its whole group.
            job.process.send_signal(SIGNALS[fault.kind])
            os.killpg(job.process.pid, SIGNALS[fault.kind])
        elif fault.kind == "second job in the folder":
            self._refused(fault)
        elif fault.kind == "job's driver stopped":
            self._stopped(job, fault)
        elif fault.kind == "run folder read-only":
            with read_only(self.run):
                yield
            return
        yield

    def _refused(self, fault: Ended) -> None:
        """Start a second job in the folder, which must be refused."""
        second = self._start("resume=auto")
        code = second.end(START_S)
        fault.said = (second.text.strip().splitlines() or [""])[-1][:200]
        if code != 2 or "is in use by" not in second.text:
            self.problems.append(f"{fault.kind}: ended with {code}, not 2: {second.text[-2000:]}")
        second.kill()

    def _stopped(self, job: Job, fault: Ended) -> None:
        """Stop the driver for a while; the job must say so, and that it answers again."""
        driver = job.find("ray::Driver")
        if driver is None:
            self.problems.append(f"{fault.kind}: there is no driver")
            return
        os.kill(driver, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        os.kill(driver, signal.SIGCONT)
        fault.said = "reported"
        if not job.until(lambda: "the driver answers again" in job.text, END_S):
            self.problems.append(f"{fault.kind}: the job did not say so")


def study(config: Path, folder: Path, model: str, kinds: list[str], count: int, seed: int) -> dict[str, Any]:
    """Run a training alone and one under `count` faults that end its jobs; return figures and problems."""
    steps = STEPS * (count + 1)
    alone, resumed = (Resumed(config, folder / name, model, steps) for name in ("alone", "resumed"))
    planned = plan_endings(kinds, count, steps, seed)
    alone.hit([])
    resumed.hit(planned)
    problems = [*alone.problems, *resumed.problems]
    try:
        problems += [f"resumed and undisturbed run: {text}" for text in differences(alone.run, resumed.run)]
    except (OSError, StopIteration) as error:
        problems.append(f"the runs cannot be compared: {error!r}")
    return {
        "job_faults": count,
        "job_steps": steps,
        "job_restarts": resumed.restarts,
        "job_kinds": sorted({fault.kind for fault in planned}),
        "job_events": [[f.kind, f.step, f.said, f.took_s, f.resumed_s] for f in planned],
        "job_problems": problems,
    }
