"""The reference pages are what their generator writes, and every key and metric has a meaning."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

from kray.config.reading import all_keys, declared, fields_of, is_section
from kray.config.reference import ALLOWED, configuration_page, meanings, metrics_page, stale_pages
from kray.config.schema import KrayConfig
from kray.metrics import METRICS, STATUS_VIEW, STEP_PARTS, Metric, timing
from kray.monitor import status

ROOT = Path(__file__).parents[3]


def sections(section: type) -> set[type]:
    kinds = {declared(annotation)[0] for annotation in fields_of(section).values()}
    nested = {kind for kind in kinds if is_section(kind)}
    return {section}.union(*(sections(kind) for kind in nested))


def test_the_pages_are_up_to_date():
    assert stale_pages(ROOT) == []


def test_every_key_has_a_meaning():
    for section in sections(KrayConfig):
        leaves = {key for key, kind in fields_of(section).items() if not dataclasses.is_dataclass(declared(kind)[0])}
        assert leaves <= set(meanings(section)), section
        assert all(text.endswith(".") for text in meanings(section).values()), section


def test_every_key_and_metric_is_on_its_page():
    page = configuration_page()
    for key in all_keys(KrayConfig):
        section, _, leaf = key.rpartition(".")
        assert f"\n## {key}\n" in page or section == "prompts.test" or f"| `{leaf}` |" in page, key
    assert set(ALLOWED) <= set(all_keys(KrayConfig))
    assert all(f"| `{name}` |" in metrics_page() for name in METRICS)


def test_a_page_out_of_date_is_named(tmp_path):
    (tmp_path / "docs/reference").mkdir(parents=True)
    (tmp_path / "docs/reference/metrics.md").write_text(metrics_page())
    assert stale_pages(tmp_path) == ["docs/reference/configuration.md"]


def test_the_generator_loads_neither_ray_nor_torch():
    code = "import sys, kray.config.reference; print({'ray', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr


def test_status_view_metrics_are_those_that_it_reads():
    shown = {value for name, value in vars(status).items() if isinstance(value, Metric) and name.isupper()}
    assert shown | {timing(part) for part in STEP_PARTS} == STATUS_VIEW
