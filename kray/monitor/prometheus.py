"""What Ray's Prometheus endpoints tell of a run.

Ray puts `ray_` before every name: `kray_step` is asked for as `ray_kray_step`. A curated part of kray.tracking.metrics is set
once a step from what is recorded anyway, the state of pool and scorer every few seconds. Tags: run, and engine, part or
state where there are several. Never a prompt's id: series must stay few.
cluster/grafana-kray.json shows them. Ray is loaded when the first value is set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kray.tracking.metrics import METRICS

GAUGES = {  # name -> the metric whose newest value it is
    "kray_reward_mean": "reward/mean",
    "kray_effective_prompts_ratio": "group/effective_ratio_prompts",
    "kray_effective_rollouts_ratio": "group/effective_ratio_rollouts",
    "kray_response_tokens_mean": "completions/mean_length",
    "kray_response_clipped_ratio": "completions/clipped_ratio",
    "kray_budget_max_rollouts": "budget/max",
    "kray_planner_value_planned": "planner/value_planned",
    "kray_planner_value_realised": "planner/value_realised",
    "kray_planner_brier": "planner/brier",
    "kray_loss_nats": "train/loss",
    "kray_entropy_nats": "train/entropy",
    "kray_grad_norm": "train/grad_norm",
    "kray_logprob_gap_nats": "train/logprob_gap_mean",
    "kray_probe_gap_nats": "pool/probe_gap",
    "kray_engines": "pool/engines",
    "kray_staleness_mean_versions": "staleness/mean",
    "kray_staleness_max_versions": "staleness/max",
    "kray_epoch": "progress/epoch",
    "kray_rollouts_per_second": "throughput/rollouts_per_s",
    "kray_tokens_per_second": "throughput/tokens_per_s",
    "kray_accuracy": "eval/accuracy",
    "kray_greedy_accuracy": "eval/greedy_accuracy",
    "kray_driver_memory_gib": "memory/driver_gib",
}
COUNTERS = {  # name -> the metric that counts since the run or its start began
    "kray_rollouts_total": "progress/rollouts",
    "kray_tokens_total": "progress/tokens",
    "kray_engine_restarts_total": "pool/restarts",
    "kray_engine_preemptions_total": "pool/preemptions",
    "kray_task_retries_total": "pool/retries",
}
SUMS = {  # name -> the metric whose values of the steps are added up
    "kray_failed_rollouts_total": "reward/failed",
    "kray_nonfinite_updates_total": "train/nonfinite",
    "kray_skipped_updates_total": "train/skipped",
    "kray_dropped_groups_total": "staleness/dropped_groups",
}
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
    named = {name: (kind, "", f"{source}: {METRICS[source][1]} ({METRICS[source][0]})")
             for kind, table in single for name, source in table.items()}  # fmt: skip
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
            if f"timing_s/{part}" in metrics:
                self._metric("kray_part_seconds").set(metrics[f"timing_s/{part}"], tags | {"part": part})
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
        from kray.rollout.health import State

        tags = {"run": run}
        for engine in pool.engines:
            mine = tags | {"engine": engine.name}
            self._metric("kray_engine_up").set(float(engine.health.state is State.SERVING), mine)
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
