"""What Ray's Prometheus endpoints tell of a run.

Ray puts `ray_` before every name: `kray_step` is asked for as `ray_kray_step`. Metrics that name a Prometheus metric
(kray/metrics.py) are set once a step, the state of pool and scorer every few seconds. Tags: run, and engine, part or state
where there are several. Never a prompt's id: series must stay few.
cluster/grafana-kray.json shows them. Ray is loaded when the first value is set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kray.metrics import single_metrics, timing

# Prometheus name -> the metric: whose newest value it is; that counts since the run or its start began; whose values are
# added up over the steps.
GAUGES, COUNTERS, SUMS = (
    {metric.prometheus: metric for metric in single_metrics() if metric.prometheus and metric.prometheus_kind == kind}
    for kind in ("gauge", "counter", "sum")
)
PARTS = ("plan", "generate", "reward", "wait", "update", "sync", "step", "idle", "evaluate", "checkpoint")  # timing_s/
OTHERS = {  # name -> (kind, tag beside run, what it is)
    "kray_step": ("gauge", "", "steps completed"),
    "kray_part_seconds": ("gauge", "part", "timing_s/<part> of the newest step"),
    "kray_engine_idle_ratio": ("gauge", "", "timing_s/idle / timing_s/step: share of the step without generation"),
    "kray_budget_rollouts": ("histogram", "", "budgets of the step's prompts, at most BUDGETS of them"),
    "kray_step_seconds": ("histogram", "", "timing_s/step"),
    "kray_engine_up": ("gauge", "engine", "1 while the engine serves proved weights"),
    "kray_engine_rollouts_in_hand": ("gauge", "engine", "unfinished rollouts that the engine holds"),
    "kray_engine_tokens_total": ("counter", "engine", "response tokens that the engine has delivered"),
    "kray_engine_busy_ratio": ("gauge", "engine", "share of the last minute in which the engine was stepping"),
    "kray_tasks": ("gauge", "state", "rollout tasks that are waiting or running"),
    "kray_reward_timeouts_total": ("counter", "", "answers whose judging took too long"),
    "kray_reward_restarts_total": ("counter", "", "judging processes that were replaced"),
}  # fmt: skip
BOUNDARIES = {
    "kray_budget_rollouts": [1.0, 2, 4, 8, 16, 32, 64, 128, 256],
    "kray_step_seconds": [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000],
}
BUDGETS = 256  # that one step observes


def exported() -> dict[str, tuple[str, str, str]]:
    """Every name -> (kind, tag beside run, what it is); the kinds are gauge, counter, histogram."""
    single = [("gauge", GAUGES), ("counter", COUNTERS), ("counter", SUMS)]
    named = {
        name: (kind, "", f"{metric}: {metric.meaning} ({metric.unit})")
        for kind, table in single
        for name, metric in table.items()
    }
    return named | OTHERS


class Exporter:
    """Belongs to one driver process; its methods return at once, whatever becomes of the values."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}
        self._counted: dict[tuple[str, ...], float] = {}

    def step(self, run: str, step: int, metrics: Mapping[str, float], budgets: np.ndarray) -> None:
        """A line of metrics was recorded. budgets (M,): of the newest step."""
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
        if "timing_s/step" not in metrics:
            return  # an evaluation or a checkpoint
        for name, source in SUMS.items():
            if metrics.get(source):
                self._metric(name).inc(metrics[source], tags)
        seconds = metrics["timing_s/step"]
        self._metric("kray_step").set(step, tags)
        self._metric("kray_step_seconds").observe(max(seconds, 1e-9), tags)
        if "timing_s/idle" in metrics and seconds > 0:
            self._metric("kray_engine_idle_ratio").set(metrics["timing_s/idle"] / seconds, tags)
        for budget in budgets[:: math.ceil(len(budgets) / BUDGETS) or 1].tolist():
            if budget:
                self._metric("kray_budget_rollouts").observe(budget, tags)

    def pool(self, run: str, pool: Any, scorer: Any, idle: Callable[[str], float | None]) -> None:
        """What engines and scorer are at. idle: an engine's share without work."""
        tags = {"run": run}
        for engine in pool.engines:
            mine = tags | {"engine": engine.name}
            self._metric("kray_engine_up").set(float(engine.health.serving), mine)
            self._metric("kray_engine_rollouts_in_hand").set(pool.schedule.load(engine.name), mine)
            self._count("kray_engine_tokens_total", engine.tokens, mine)
            share = idle(engine.name)
            if share is not None:
                self._metric("kray_engine_busy_ratio").set(1 - share, mine)
        self._metric("kray_tasks").set(pool.schedule.waiting, tags | {"state": "waiting"})
        self._metric("kray_tasks").set(pool.schedule.running, tags | {"state": "running"})
        self._count("kray_reward_timeouts_total", scorer.timeouts, tags)
        self._count("kray_reward_restarts_total", scorer.restarts, tags)

    def _count(self, name: str, total: float, tags: dict[str, str]) -> None:
        """total: so far; a smaller one than before begins anew."""
        key = (name, *tags.values())
        before = self._counted.get(key, 0.0)
        self._counted[key] = total
        if total > 0 and total != before:
            self._metric(name).inc(total - before if total > before else total, tags)

    def _metric(self, name: str) -> Any:
        if name not in self._known:
            from ray.util import metrics

            kind, tag, meaning = exported()[name]
            tags = ("run", tag) if tag else ("run",)
            if kind == "histogram":
                self._known[name] = metrics.Histogram(name, meaning, boundaries=BOUNDARIES[name], tag_keys=tags)
            else:
                self._known[name] = {"gauge": metrics.Gauge, "counter": metrics.Counter}[kind](name, meaning, tags)
        return self._known[name]
