"""Runs of a comparison that are lost or fail: how often they are tried, and what a report says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_comparison import study_file, write_child

from kray.compare.failures import failure, forget, give_up, missing, note_under_way, under_way
from kray.compare.report import write_report
from kray.compare.study import Study, load_study
from kray.compare.supervision import Losses
from kray.errors import InfrastructureError, KrayError

BASE = Path(__file__).parents[3] / "configs" / "tiny.yaml"
METHODS = "  uniform: {plan.mode: uniform}\n  kray: {plan.mode: static}\n"
LOSS = InfrastructureError("the driver died: it was killed")


@pytest.fixture
def study(tmp_path) -> Study:
    file = study_file(tmp_path, BASE, METHODS, steps=8, every=4, seeds="0-1")
    found = load_study(file, folder=str(tmp_path / "out"), overrides=["run.max_restarts=2"])
    found.folder.mkdir()
    return found


def test_a_lost_run_is_tried_again_until_it_has_lost_too_many(study):
    losses, (child, other, *_) = Losses(study), study.children
    note_under_way(study, child, "run-1")
    assert under_way(study).mlflow_run_id == "run-1"
    assert [losses.lost(LOSS, now) for now in (0.0, 1.0)] == [0.0, 2.0]
    assert failure(child) == ""
    assert losses.lost(LOSS, 2.0) == 0.0
    assert failure(child) == "the driver died: it was killed (tried 3 times)"
    # The restarts of one run are not those of another.
    note_under_way(study, other)
    assert losses.lost(LOSS, 3.0) == 0.0
    assert failure(other) == ""
    assert missing(study)[child.name] == failure(child)
    forget(study)
    assert set(missing(study).values()) == {""}


def test_losses_without_a_run_end_the_comparison(study):
    with pytest.raises(KrayError, match="the driver died: it was killed; no run had begun"):
        Losses(study).lost(LOSS, 0.0)
    losses = Losses(study)
    note_under_way(study, study.children[0])
    losses.lost(LOSS, 0.0)
    note_under_way(study, None)
    assert [losses.lost(LOSS, now) for now in (1.0, 2.0)] == [2.0, 4.0]
    with pytest.raises(KrayError, match=r"the same command goes on with .*run\.max_restarts"):
        losses.lost(LOSS, 3.0)


def test_a_run_that_is_done_is_not_under_way(study):
    child = study.children[0]
    note_under_way(study, child)
    write_child(child, 0.7)
    assert under_way(study).child(study) is None
    give_up(child, "late", 1)
    assert failure(child) == ""


def test_a_damaged_note_is_none(study):
    for text in ("", "[]", '{"method": "uniform"}', '{"method": "uniform", "seed": "x"}'):
        (study.folder / "under-way.json").write_text(text)
        assert under_way(study) is None


def test_a_report_says_which_runs_are_missing(study):
    first, second, third, last = study.children
    for child in (first, last):
        write_child(child, 0.7)
    give_up(second, "gradients are not finite: <\ud800> in «a | b»", 1)
    report = write_report(study)
    page, folder = Path(report.page).read_text(), Path(report.page).parent
    assert f"<b>Given up</b>: {second.name} (gradients are not finite: &lt;" in page
    assert f"Not done: {third.name}." in page
    found = json.loads((folder / "results.json").read_text())["missing"]
    assert found.keys() == {second.name, third.name}
    assert found[third.name] == ""
    text = (folder / "results.md").read_text()
    assert f"Missing runs: {second.name} (gradients" in text
    forget(study)
    write_child(second, 0.7)
    write_child(third, 0.7)
    assert "Missing runs" not in Path(write_report(study).page).with_name("results.md").read_text()
