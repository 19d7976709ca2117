"""Exported metrics at Ray's real Prometheus endpoint."""

from __future__ import annotations

import time
import urllib.request
from types import SimpleNamespace

import numpy as np

from kray.monitor.prometheus import COUNTERS, GAUGES, PARTS, SUMS, Exporter, exported
from kray.rollout.scheduler import Schedule

ALL = {source: 2.0 for table in (GAUGES, COUNTERS, SUMS) for source in table.values()} | {
    f"timing_s/{part}": 1.5 for part in PARTS
}


def pool_and_scorer():
    schedule = Schedule(1)
    engine = SimpleNamespace(name="engine-0", health=SimpleNamespace(serving=True), tokens=7)
    pool = SimpleNamespace(engines=[engine], schedule=schedule)
    return pool, SimpleNamespace(timeouts=1, restarts=1)


def test_every_metric_is_at_the_prometheus_endpoint(ray_local):
    exporter = Exporter()
    exporter.step("run-1", 5, ALL, np.array([2, 8, 8]))
    exporter.pool("run-1", *pool_and_scorer(), idle_share=lambda name: 0.25)
    (node,) = [node for node in ray_local.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {f"ray_{name}" + ("_bucket" if kind == "histogram" else "") for name, (kind, _, _) in exported().items()}
    deadline, missing = time.monotonic() + 60, wanted
    while missing and time.monotonic() < deadline:
        lines = [line for line in scrape(address) if 'run="run-1"' in line]
        missing = wanted - {line.partition("{")[0] for line in lines}
        time.sleep(0.5)
    assert not missing
    assert value(lines, "ray_kray_step") == 5
    assert value(lines, "ray_kray_rollouts_total") == 2
    assert value(lines, "ray_kray_engine_busy_ratio", 'engine="engine-0"') == 0.75
    assert value(lines, "ray_kray_budget_rollouts_count") == 3
    assert value(lines, "ray_kray_part_seconds", 'part="sync"') == 1.5


def scrape(address: str) -> list[str]:
    try:
        return urllib.request.urlopen(address, timeout=5).read().decode().splitlines()
    except OSError:
        return []


def value(lines: list[str], name: str, label: str = "") -> float:
    (line,) = [line for line in lines if line.startswith(f"{name}{{") and label in line]
    return float(line.rpartition(" ")[2])
