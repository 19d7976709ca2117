"""Exports the state of a run to Ray's Prometheus endpoints.

Ray puts `ray_` before every name: `kray_step` is queried as `ray_kray_step`. A metric that names a Prometheus metric
(kray/metrics/) is set once a step; the state of pool and scorer every few seconds. Every series carries the tag `run`, and
engine, part or state where there are several; never a prompt id, because series must stay few. cluster/grafana-kray.json
shows them. Ray is loaded when the first value is set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from kray.metrics import TIMING_S_IDLE, TIMING_S_STEP, single_metrics, timing
from kray.monitor.observed import ObservedPool, ObservedScorer

# Prometheus name -> metric. Gauges show its newest value; counters count up with the metric, which is a total since the run
# or its latest start began; sums add up its values over the steps.
GAUGES, COUNTERS, SUMS = (
    {metric.prometheus: metric for metric in single_metrics() if metric.prometheus and metric.prometheus_kind == kind}
    for kind in ("gauge", "counter", "sum")
)
# Parts of a step that kray_part_seconds shows.
PARTS = ("plan", "generate", "reward", "wait", "update", "sync", "step", "idle", "evaluate", "checkpoint")
# The most budgets of one step that are observed.
BUDGETS = 256


class Exported(NamedTuple):
    """What Prometheus shows under one name; `tag` is a second one beside run, "" for none."""

    kind: Literal["gauge", "counter", "histogram"]
    tag: str
    meaning: str


# What is exported besides the metrics of kray/metrics/.
OTHERS = {
    "kray_step": Exported("gauge", "", "steps completed"),
    "kray_part_seconds": Exported("gauge", "part", "seconds of a part of the newest step"),
    "kray_engine_idle_ratio": Exported(
        "gauge", "", "share of the newest step in which an engine did not generate, mean over engines"
    ),
    "kray_budget_rollouts": Exported("histogram", "", f"budgets of the step's prompts, at most {BUDGETS} of them"),
    "kray_step_seconds": Exported("histogram", "", TIMING_S_STEP.described),
    "kray_engine_up": Exported("gauge", "engine", "1 while the engine serves verified weights"),
    "kray_engine_rollouts_in_hand": Exported("gauge", "engine", "unfinished rollouts assigned to the engine"),
    "kray_engine_tokens_total": Exported("counter", "engine", "response tokens that the engine has delivered"),
    "kray_engine_busy_ratio": Exported("gauge", "engine", "share of the last minute in which the engine generated"),
    "kray_tasks": Exported("gauge", "state", "rollout tasks that are waiting or running"),
    "kray_reward_timeouts_total": Exported("counter", "", "responses whose scoring exceeded its time limit"),
    "kray_reward_restarts_total": Exported("counter", "", "reward processes that were replaced"),
}
# Upper bounds of the histograms' buckets: rollouts, and seconds.
BOUNDARIES = {
    "kray_budget_rollouts": [1.0, 2, 4, 8, 16, 32, 64, 128, 256],
    "kray_step_seconds": [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000],
}


def exported() -> dict[str, Exported]:
    """Return everything that is exported, by its Prometheus name without Ray's prefix."""
    gauges = {name: Exported("gauge", "", metric.described) for name, metric in GAUGES.items()}
    counters = {name: Exported("counter", "", metric.described) for name, metric in (COUNTERS | SUMS).items()}
    return gauges | counters | OTHERS


class Exporter:
    """Sets the Prometheus metrics of one driver process; its methods return at once, whatever becomes of the values."""

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}
        # (name, tags) -> the total at the last call.
        self._totals: dict[tuple[str, ...], float] = {}

    def step(self, run: str, step: int, metrics: Mapping[str, float], budgets: np.ndarray) -> None:
        """Export the metrics of a line that was recorded: of a step, an evaluation or a checkpoint.

        Args:
            run: The run's name.
            step: The completed steps.
            metrics: Metric -> value.
            budgets: (M,) int rollouts, of the prompts of the newest step.
        """
        tags = {"run": run}
        for name, source in GAUGES.items():
            if source in metrics:
                self._metric(name).set(metrics[source], tags)
        for part in PARTS:
            if timing(part) in metrics:
                self._metric("kray_part_seconds").set(metrics[timing(part)], tags | {"part": part})
        for name, source in COUNTERS.items():
            if source in metrics:
                self._count(name, metrics[source], tags)
        if TIMING_S_STEP not in metrics:
            return
        for name, source in SUMS.items():
            if metrics.get(source):
                self._metric(name).inc(metrics[source], tags)
        seconds = metrics[TIMING_S_STEP]
        self._metric("kray_step").set(step, tags)
        self._metric("kray_step_seconds").observe(max(seconds, 1e-9), tags)
        if TIMING_S_IDLE in metrics and seconds > 0:
            self._metric("kray_engine_idle_ratio").set(metrics[TIMING_S_IDLE] / seconds, tags)
        for budget in budgets[:: math.ceil(len(budgets) / BUDGETS) or 1].tolist():
            if budget:
                self._metric("kray_budget_rollouts").observe(budget, tags)

    def pool(
        self, run: str, pool: ObservedPool, scorer: ObservedScorer, idle_share: Callable[[str], float | None]
    ) -> None:
        """Export the state of the engines and the scorer.

        Args:
            run: The run's name.
            pool: The engines.
            scorer: The reward workers.
            idle_share: Engine name -> share of the last minute without generation, None where it is not known.
        """
        tags = {"run": run}
        for engine in pool.engines:
            of_engine = tags | {"engine": engine.name}
            self._metric("kray_engine_up").set(float(engine.health.serving), of_engine)
            self._metric("kray_engine_rollouts_in_hand").set(pool.schedule.load(engine.name), of_engine)
            self._count("kray_engine_tokens_total", engine.tokens, of_engine)
            share = idle_share(engine.name)
            if share is not None:
                self._metric("kray_engine_busy_ratio").set(1 - share, of_engine)
        self._metric("kray_tasks").set(pool.schedule.waiting, tags | {"state": "waiting"})
        self._metric("kray_tasks").set(pool.schedule.running, tags | {"state": "running"})
        self._count("kray_reward_timeouts_total", scorer.timeouts, tags)
        self._count("kray_reward_restarts_total", scorer.restarts, tags)

    def _count(self, name: str, total: float, tags: dict[str, str]) -> None:
        """Add to a counter what a total has grown by; a total below the last one counts from 0."""
        key = (name, *tags.values())
        before = self._totals.get(key, 0.0)
        self._totals[key] = total
        if total > 0 and total != before:
            self._metric(name).inc(total - before if total > before else total, tags)

    def _metric(self, name: str) -> Any:
        if name not in self._metrics:
            from ray.util import metrics

            kind, tag, meaning = exported()[name]
            tags = ("run", tag) if tag else ("run",)
            if kind == "histogram":
                self._metrics[name] = metrics.Histogram(name, meaning, boundaries=BOUNDARIES[name], tag_keys=tags)
            else:
                self._metrics[name] = {"gauge": metrics.Gauge, "counter": metrics.Counter}[kind](name, meaning, tags)
        return self._metrics[name]
