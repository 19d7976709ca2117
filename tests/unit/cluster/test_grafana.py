"""The dashboard asks for metrics that kray exports, and is what Grafana can load."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from kray.monitor.prometheus import exported

BOARD = json.loads((Path(__file__).parents[3] / "cluster" / "grafana-kray.json").read_text())
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
SERIES = {f"ray_{name}{suffix}": tag for name, (kind, tag, _) in exported().items() for suffix in SUFFIXES[kind]}
WORDS = {"sum", "by", "le", "run", "rate", "increase", "histogram_quantile", "part", "m"}
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_asks_for_what_kray_exports(expression):
    bare = re.sub(r'"[^"]*"|\$\w+', "", expression)  # without strings and variables
    names = set(re.findall(r"[a-zA-Z_]\w*", bare))
    assert any(name in SERIES for name in names)
    assert names - SERIES.keys() <= WORDS, names
    assert expression.count("(") == expression.count(")")
    assert expression.count("{") == expression.count("}") == expression.count('run=~"$run"')


def test_a_legend_names_labels_that_the_series_have():
    for panel in PANELS:
        for target in panel["targets"]:
            tags = {SERIES[name] for name in re.findall(r"ray_kray_\w+", target["expr"])} | {"run", "le"}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= tags, panel["title"]


def test_grafana_can_load_it():
    assert BOARD["schemaVersion"] >= 36
    assert BOARD["uid"]
    assert BOARD["title"]
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert re.findall(r"ray_kray_\w+", variables["run"]["definition"])[0] in SERIES
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_panels_fill_the_grid_without_overlap():
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    for place in places:
        assert place["x"] >= 0
        assert place["w"] > 0
        assert place["h"] > 0
        assert place["x"] + place["w"] <= 24
    for a, b in combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)


def test_what_is_asked_of_a_dashboard_is_on_it():
    shown = " ".join(expressions())
    for name in (
        "kray_rollouts_per_second",
        "kray_tokens_total",
        "kray_budget_rollouts_bucket",
        "kray_effective_prompts_ratio",
        "kray_engine_busy_ratio",
        'part="sync"',
        "kray_staleness_max_versions",
        "kray_engine_restarts_total",
    ):
        assert name in shown
