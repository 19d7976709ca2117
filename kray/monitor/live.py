"""The status of a run from inside its driver: what the folder shows, and what engines and tasks are doing now."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kray.config import KrayConfig
from kray.metrics import EVAL_ACCURACY
from kray.monitor.observed import ObservedEngine, ObservedTraining
from kray.monitor.prometheus import Exporter
from kray.monitor.status import histogram, summary

# Seconds between two samples of the engines.
SAMPLE_S = 5.0
# Samples over which an engine's idle share is taken: about the last minute.
WINDOW = 12


class LiveStatus:
    """Collects the status of the training under way and exports it to Prometheus.

    `status` reads plain attributes and waits for nothing: it may be called from another thread while the driver is busy.

    Attributes:
        last_line: The newest line that the driver has logged.
    """

    def __init__(self, config: KrayConfig, folder: Path):
        self._config, self._folder = config, folder
        self._training: ObservedTraining | None = None
        self.last_line = ""
        self._part = ""
        # Every metric as it was last recorded, and the accuracies of the first and the newest evaluation by step.
        self._newest: dict[str, float] = {}
        self._evaluations: dict[int, float] = {}
        self._recorded_at = time.monotonic()
        # Engine -> seconds (busy, up), one dict a sample.
        self._samples: deque[dict[str, tuple[float, float]]] = deque(maxlen=WINDOW)
        self._exporter = Exporter()

    def begin(self, training: ObservedTraining, folder: Path, part: str = "") -> None:
        """Observe another training from now on.

        Args:
            training: The training that begins.
            folder: Its run folder.
            part: Which of several trainings it is, as people read it; "" for the only one.
        """
        self._training, self._folder, self._part = training, folder, part
        self._newest, self._evaluations = {}, {}
        self._samples.clear()

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a line that was written to metrics.jsonl, and export them."""
        self._newest = self._newest | {"step": step} | dict(metrics)
        self._recorded_at = time.monotonic()
        if EVAL_ACCURACY in metrics:
            first = dict(list(self._evaluations.items())[:1])
            self._evaluations = first | {step: metrics[EVAL_ACCURACY]}
        if self._training is not None:
            self._exporter.step(self._folder.name, step, metrics, self._training.recorder.budgets)

    async def run(self) -> None:
        """Sample the engines every SAMPLE_S seconds and export their state, until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            if self._training is not None:
                now, workers = time.monotonic(), self._training.workers
                pool = workers.pool
                self._samples.append({engine.name: (engine.busy_s, _up_s(engine, now)) for engine in pool.engines})
                self._exporter.pool(self._folder.name, pool, workers.scorer, self.idle_share)

    def status(self) -> dict[str, Any]:
        """Return the status now: the keys of `kray.monitor.status.summary`, with engines, tasks and budgets."""
        training = self._training
        config = training.config if training is not None else self._config
        found = summary(self._folder, config, self._newest, self._evaluations) | {
            "live": True,
            "part": self._part,
            "state": "starting",
            "said": self.last_line,
            "asked_at": time.time(),
            "since_step_s": time.monotonic() - self._recorded_at if self._newest else None,
        }
        if training is None:
            return found
        state, pool, steps = training.state, training.workers.pool, config.run.steps
        schedule = pool.schedule
        return found | {
            "state": "stopping" if training.stop.reason else "running" if training.workers.ready else "starting",
            "step": state.step,
            "steps": steps,
            "left_s": training.recorder.left_s(steps - state.step) if len(training.recorder.steps) else None,
            "rollouts": state.rollouts,
            "tokens": state.tokens,
            "budgets": histogram(training.recorder.budgets),
            "engines": [self._engine(engine, *schedule.holding(engine.name)) for engine in pool.engines],
            "tasks": {"waiting": schedule.waiting, "running": schedule.running, "retried": schedule.retried},
            "restarts": sum(engine.health.restarts for engine in pool.engines),
            "preemptions": pool.preemptions,
            "open_command": training.tracker.open_command,
        }

    def idle_share(self, engine: str) -> float | None:
        """Return the share of the last minute or so, while it was up, in which an engine did not generate.

        Returns:
            A share in [0, 1]; None before there are two samples of the engine.
        """
        if len(self._samples) < 2 or engine not in self._samples[0]:
            return None
        first, last = self._samples[0], self._samples[-1]
        busy, up = (b - a for a, b in zip(first[engine], last[engine], strict=True))
        return min(1.0, max(0.0, 1.0 - busy / up)) if up > 0 else None

    def _engine(self, engine: ObservedEngine, tasks: int, rollouts: int) -> dict[str, Any]:
        return {
            "name": engine.name,
            "state": engine.health.state.value,
            "tasks": tasks,
            "rollouts": rollouts,
            "tokens": engine.tokens,
            "idle": self.idle_share(engine.name),
            "version": engine.health.version,
            "restarts": engine.health.restarts,
            "lost": engine.health.reason,
        }


def _up_s(engine: ObservedEngine, now: float) -> float:
    """Return the seconds for which the engine's actors have been up, over all its restarts."""
    since = engine.up_since
    return engine.up_s + (now - since if since is not None else 0.0)
