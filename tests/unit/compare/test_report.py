"""A report of runs that were made up: its tables, its figures and its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_comparison import study_file, write_children

from kray.compare.progress import progress
from kray.compare.report import write_report
from kray.compare.results import CURRENCIES, read_results
from kray.compare.study import Study, load_study
from kray.compare.summary import pairs

BASE = Path(__file__).parents[3] / "configs" / "tiny.yaml"
METHODS = """  uniform: {plan.mode: uniform}
  uniform_4x: {plan.mode: uniform, times: 4}
  kray: {plan.mode: static, plan.candidates: 2, prompts.per_step: 64}
  breadth_reuse: {plan.mode: static, plan.candidates: 2, shuffle_budgets: true}
"""
FINALS = {"uniform": 0.7, "uniform_4x": 0.76, "kray": 0.8, "breadth_reuse": 0.77}


@pytest.fixture
def study(tmp_path) -> Study:
    made = load_study(study_file(tmp_path, BASE, METHODS, steps=20, every=5, seeds="0-2"), folder=str(tmp_path / "out"))
    write_children(made, FINALS, kray={"rows": 1.0, "passes": 3.0})
    return made


def test_a_report_has_every_currency_for_each_method_and_pair(study):
    report = write_report(study)
    folder = Path(report.page).parent
    assert {file.name for file in report.files} >= {"results.md", "results.json", "progress.png", "progress.svg"}
    assert all(file.is_file() for file in report.files)
    found = json.loads((folder / "results.json").read_text())
    kray = found["methods"]["kray"]
    assert kray["rollouts"] == 20 * 256
    assert found["methods"]["uniform"]["flops"] == pytest.approx(20)  # its own step is the unit
    # 2 T a rollout, 6 T a row; prompts are few
    assert kray["flops"] / 20 == pytest.approx((2 + 6 * 3) / (2 + 6 * 0.4), rel=0.1)
    assert kray["flops_weighted"] / 20 == pytest.approx((6 + 6 * 3) / (6 + 6 * 0.4), rel=0.1)
    pair = found["pairs"]["kray"]["uniform"]
    assert pair["reached"] == pair["seeds"] == 3
    assert 0 < pair["rollouts_share"]["mean"] < 1
    assert pair["flops_share"]["mean"] == pytest.approx(pair["rollouts_share"]["mean"] * kray["flops"] / 20, rel=0.01)
    assert found["pairs"]["uniform"]["uniform_4x"]["reached"] == 0
    assert found["flops"] == {"prompt_tokens": 256, "response_tokens": 1024, "generation_factor": 3}
    page, text = Path(report.page).read_text(), (folder / "results.md").read_text()
    for name in CURRENCIES.values():
        assert name in page
    assert "| `kray` | 3 |" in text
    assert "prompts of 256 tokens" in text
    assert "| `uniform_4x` | `kray` |" in text
    outcomes = {v["claim"]: v["outcome"] for v in report.verdicts}
    assert outcomes["The default is better than its budgets given to random prompts"] != "not measured"


def test_other_proportions_change_modelled_costs_alone(study, tmp_path):
    other = load_study(study.path, folder=str(study.folder), flops="4096,16,3")
    before, after = (pairs(read_results(s))["kray"]["uniform"] for s in (study, other))
    assert before["rollouts_share"] == after["rollouts_share"]
    # with long prompts they are what costs, and kray visits twice as many
    assert after["flops_share"]["mean"] > before["flops_share"]["mean"]


def test_the_first_figure_has_the_methods_that_are_done(study):
    results = read_results(study)
    left, right = progress(results, study.curves).axes
    drawn = [line for line in left.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in drawn] == ["GRPO", "GRPO, 4x rollouts", "kray"]
    assert left.get_ylabel() == "held-out accuracy"
    assert right.get_xlabel() == "modelled FLOPs (1 = a step of GRPO)"
    means = np.mean([run.accuracy for run in results.runs["kray"].values()], axis=0)
    assert drawn[-1].get_ydata() == pytest.approx(means[1:])
    assert drawn[-1].get_xdata().tolist() == [1280, 2560, 3840, 5120]
    assert len(left.collections) == 3  # bands
    assert progress(results, ["nothing"]) is None
    (axes, _) = progress(results, ["breadth_reuse"]).axes
    assert axes.lines[0].get_label() == "breadth reuse"


def test_runs_without_counts_have_no_modelled_costs(study):
    for child in study.children:
        file = child.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [{key: value for key, value in line.items() if not key.startswith("train/")} for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in kept))
    report = write_report(study)
    found = json.loads((Path(report.page).parent / "results.json").read_text())
    assert found["methods"]["kray"]["flops"] is None
    assert found["methods"]["kray"]["rollouts"] == 20 * 256
    by_claim = {v["claim"]: v for v in report.verdicts}
    claim = "The default reaches the final accuracy of uniform with at most 100% of its modelled FLOPs"
    assert (by_claim[claim]["outcome"], by_claim[claim]["measured"]) == (
        "not measured",
        "the runs lack what it is measured by",
    )
