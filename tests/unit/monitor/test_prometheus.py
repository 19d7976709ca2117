"""What is set arrives at Ray's Prometheus endpoint, under the names that the dashboard asks for."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kray.metrics import METRICS
from kray.monitor.prometheus import BUDGETS, COUNTERS, GAUGES, PARTS, SUMS, Exporter, exported

ALL = {source: 2.0 for table in (GAUGES, COUNTERS, SUMS) for source in table.values()} | {
    f"timing_s/{part}": 1.5 for part in PARTS
}


def test_prometheus_names_and_sources_are_declared():
    assert {source for table in (GAUGES, COUNTERS, SUMS) for source in table.values()} <= METRICS.keys()
    for name, (kind, _, _) in exported().items():
        assert re.fullmatch(r"kray_[a-z0-9_]+", name)
        assert name.endswith("_total") == (kind == "counter")


class Noted:
    """In the place of one of Ray's metrics."""

    def __init__(self):
        self.calls: list[tuple] = []

    def __getattr__(self, method):
        return lambda value, tags: self.calls.append((method, value, tags))


@pytest.fixture
def noted(monkeypatch):
    """An exporter, and what it sets by name."""
    metrics: dict[str, Noted] = {}
    monkeypatch.setattr(Exporter, "_metric", lambda self, name: metrics.setdefault(name, Noted()))
    return Exporter(), metrics


def test_counters_grow_by_increments_after_a_restart_too(noted):
    exporter, metrics = noted
    for total in (10, 10, 25, 4):
        exporter.step("r", 1, {"progress/rollouts": total}, np.zeros(0))
    assert [value for _, value, _ in metrics["kray_rollouts_total"].calls] == [10, 15, 4]


def test_a_step_observes_few_budgets_an_evaluation_none(noted):
    exporter, metrics = noted
    exporter.step("r", 3, {"eval/accuracy": 0.5}, np.full(10_000, 8))
    assert "kray_budget_rollouts" not in metrics
    exporter.step("r", 3, ALL, np.full(10_000, 8))
    assert BUDGETS // 2 <= len(metrics["kray_budget_rollouts"].calls) <= BUDGETS
    assert metrics["kray_step"].calls == [("set", 3, {"run": "r"})]


def value(lines: list[str], name: str, label: str = "") -> float:
    (line,) = [line for line in lines if line.startswith(f"{name}{{") and label in line]
    return float(line.rpartition(" ")[2])
