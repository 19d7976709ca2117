"""What a run tells whoever asks while it goes on, and what its folder tells of it at any time. Loads neither Ray nor torch.

`Watch` lives in the driver and is told every step's metrics. `Watch.status` reads plain attributes and waits for nothing: it
may be called from another thread while the driver works. `from_folder` gives the same form, without engines, from
metrics.jsonl alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kray.config import KrayConfig, kept_config, load_config
from kray.errors import KrayError
from kray.metrics import (
    EVAL_ACCURACY,
    GROUP_EFFECTIVE_RATIO_PROMPTS,
    GROUP_EFFECTIVE_RATIO_ROLLOUTS,
    POOL_PREEMPTIONS,
    POOL_RESTARTS,
    PROGRESS_ROLLOUTS,
    PROGRESS_TOKENS,
    REWARD_MEAN,
    STALENESS_MEAN,
    THROUGHPUT_ROLLOUTS_PER_S,
    THROUGHPUT_TOKENS_PER_S,
    TIMING_S_IDLE,
    TIMING_S_STEP,
)
from kray.monitor.prometheus import Exporter

if TYPE_CHECKING:
    from kray.driver.loop import Training

PARTS = ("plan", "generate", "reward", "update", "sync")
SAMPLE_S = 5.0
WINDOW = 12  # samples of the engines over which their idle share is taken
BACK = 50  # steps whose median makes the remaining time


class Watch:
    """training: set once there is one; until then the run is starting."""

    def __init__(self, config: KrayConfig, folder: Path):
        self.config, self.folder = config, folder
        self.training: Training | None = None
        self.said = ""  # the newest line
        self._part = ""
        self._newest: dict[str, float] = {}  # every metric as it was last recorded
        self._evaluations: dict[int, float] = {}  # step -> accuracy; the first and the newest
        self._heard_at = time.time()
        self._samples: deque[dict[str, tuple[float, float]]] = deque(maxlen=WINDOW)  # engine -> (busy, up) seconds
        self.exporter = Exporter()

    def begin(self, training: Training, part: str = "") -> None:
        """This is what is going on now. part: which of several it is."""
        self.training, self._part = training, part
        self._newest, self._evaluations = {}, {}
        self._samples.clear()

    def heard(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line of metrics.jsonl was written."""
        self._newest = self._newest | {"step": step} | dict(metrics)
        self._heard_at = time.time()
        if EVAL_ACCURACY in metrics:
            first = dict(list(self._evaluations.items())[:1])
            self._evaluations = first | {step: metrics[EVAL_ACCURACY]}
        if self.training is not None:
            self.exporter.step(self.training.store.run_folder.name, step, metrics, self.training.recorder.budgets)

    async def keep(self) -> None:
        """For as long as the run goes on: takes down what engines do, and exports it."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            if self.training is not None:
                now, pool = time.monotonic(), self.training.workers.pool
                self._samples.append({engine.name: (engine.busy_s, _up_s(engine, now)) for engine in pool.engines})
                self.exporter.pool(self.training.store.run_folder.name, pool, self.training.workers.scorer, self.idle)

    def status(self) -> dict[str, Any]:
        training = self.training
        config = training.config if training is not None else self.config
        found = summary(self.folder, config, self._newest, self._evaluations) | {
            "live": True,
            "part": self._part,
            "state": "starting",
            "said": self.said,
            "asked_at": time.time(),
            "since_step_s": time.time() - self._heard_at if self._newest else None,
        }
        if training is None:
            return found
        state, pool, steps = training.state, training.workers.pool, config.run.steps
        schedule = pool.schedule
        found |= {
            "run": training.store.run_folder.name,
            "folder": str(training.store.run_folder),
            "state": "stopping" if training.stop.reason else "running" if training.workers.ready else "starting",
            "step": state.step,
            "steps": steps,
            "left_s": training.recorder.left_s(steps - state.step) if training.recorder.steps else None,
            "rollouts": state.rollouts,
            "tokens": state.tokens,
            "budgets": histogram(training.recorder.budgets),
            "engines": [self._engine(engine) for engine in pool.engines],
            "tasks": {"waiting": schedule.waiting, "running": schedule.running, "retried": schedule.retried},
            "restarts": sum(engine.health.restarts for engine in pool.engines),
            "preemptions": pool.preemptions,
            "open_command": training.tracker.open_command,
        }
        return found

    def idle(self, name: str) -> float | None:
        """Of the last minute or so in which the engine was up: the share without work."""
        if len(self._samples) < 2 or name not in self._samples[0]:
            return None
        first, last = self._samples[0], self._samples[-1]
        busy, up = (b - a for a, b in zip(first[name], last[name], strict=True))
        return min(1.0, max(0.0, 1.0 - busy / up)) if up > 0 else None

    def _engine(self, engine: Any) -> dict[str, Any]:
        assert self.training is not None
        pool = self.training.workers.pool
        tasks, rollouts = pool.schedule.holding(engine.name)
        return {
            "name": engine.name,
            "state": engine.health.state.value,
            "tasks": tasks,
            "rollouts": rollouts,
            "tokens": engine.tokens,
            "idle": self.idle(engine.name),
            "version": engine.health.version,
            "restarts": engine.health.restarts,
            "lost": engine.health.reason,
        }


def _up_s(engine: Any, now: float) -> float:
    """Seconds for which the engine's actors have been up."""
    since = engine.up_since
    return engine.up_s + (now - since if since is not None else 0.0)


def summary(
    folder: Path, config: KrayConfig, newest: Mapping[str, float], evaluations: Mapping[int, float]
) -> dict[str, Any]:
    """What metrics alone tell. newest: every metric as it was last recorded; evaluations: step -> accuracy."""
    get = newest.get
    step = int(get("step", 0))
    return {
        "run": folder.name,
        "folder": str(folder),
        "mode": config.plan.mode,
        "live": False,
        "part": "",
        "step": step,
        "steps": config.run.steps,
        "left_s": (config.run.steps - step) * newest[TIMING_S_STEP] if TIMING_S_STEP in newest else None,
        "step_s": get(TIMING_S_STEP),
        "parts_s": {part: newest[f"timing_s/{part}"] for part in PARTS if f"timing_s/{part}" in newest},
        "rollouts": int(get(PROGRESS_ROLLOUTS, 0)),
        "tokens": int(get(PROGRESS_TOKENS, 0)),
        "rollouts_per_s": get(THROUGHPUT_ROLLOUTS_PER_S),
        "tokens_per_s": get(THROUGHPUT_TOKENS_PER_S),
        "reward": get(REWARD_MEAN),
        "effective_prompts": get(GROUP_EFFECTIVE_RATIO_PROMPTS),
        "effective_rollouts": get(GROUP_EFFECTIVE_RATIO_ROLLOUTS),
        "idle": newest[TIMING_S_IDLE] / newest[TIMING_S_STEP] if TIMING_S_IDLE in newest else None,
        "staleness": get(STALENESS_MEAN),
        "budget": {
            name: newest[f"budget/{name}"] for name in ("min", "p50", "p99", "max") if f"budget/{name}" in newest
        },
        "budgets": [],
        "engines": [],
        "accuracies": [[at, value] for at, value in evaluations.items()],
        "restarts": int(get(POOL_RESTARTS, 0)),
        "preemptions": int(get(POOL_PREEMPTIONS, 0)),
        "saved": [path.name for path in sorted((folder / "checkpoints").glob("step-*"))][-1:],
    }


def histogram(budgets: np.ndarray) -> list[list[Any]]:
    """[[label, prompts], ...] of budgets (M,): 0, 1, 2, 3-4, 5-8, ... rollouts, without empty ends."""
    if not len(budgets):
        return []
    bins = np.where(budgets > 0, np.ceil(np.log2(np.maximum(budgets, 1))).astype(int) + 1, 0)
    counts = np.bincount(bins)
    labels = ["0", "1", "2", *(f"{2 ** (i - 2) + 1}-{2 ** (i - 1)}" for i in range(3, len(counts)))]
    first = int(np.flatnonzero(counts)[0])
    return [[label, int(count)] for label, count in list(zip(labels, counts, strict=False))[first:]]


def from_folder(folder: Path) -> dict[str, Any]:
    """A run's status by its files alone. Raises KrayError where the folder is no run's."""
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise KrayError(f"{folder} holds no metrics.jsonl, so it is no run's folder, or the run has not begun yet")
    config = load_config(str(kept_config(folder)), [], checked=False)
    newest: dict[str, float] = {}
    evaluations: dict[int, float] = {}
    steps_s: deque[float] = deque(maxlen=BACK)
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break  # it is being written
            row = json.loads(line)
            newest |= row
            if TIMING_S_STEP in row:
                steps_s.append(row[TIMING_S_STEP])
            if EVAL_ACCURACY in row:
                evaluations = dict(list(evaluations.items())[:1]) | {row["step"]: row[EVAL_ACCURACY]}
    found = summary(folder, config, newest, evaluations)
    done = found["step"] >= found["steps"]
    age_s = time.time() - newest.get("time", time.time())
    found |= {
        "state": "finished" if done else "not running, or its driver cannot be asked",
        "left_s": (found["steps"] - found["step"]) * float(np.median(steps_s)) if steps_s and not done else None,
        "asked_at": time.time(),
        "since_step_s": age_s,
    }
    return found


def newest_runs(base: Path) -> list[Path]:
    """Folders of runs, the one that wrote last first; one that has just begun has a driver and no metrics yet."""
    times: dict[Path, int] = {}
    for name in ("metrics.jsonl", "driver.json"):
        for file in base.expanduser().glob(f"*/{name}"):
            with contextlib.suppress(OSError):  # it has just been withdrawn
                times[file.parent] = max(times.get(file.parent, 0), file.stat().st_mtime_ns)
    return sorted(times, key=lambda folder: times[folder], reverse=True)
