"""A comparison folder that an earlier version wrote is taken up and reported as that version did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from old_files import FIXTURES, unpack

from kray.compare.report import write_report
from kray.compare.study import Study, load_study


@pytest.fixture
def study(tmp_path) -> Study:
    return load_study(str(FIXTURES / "tiny-comparison.yaml"), folder=str(unpack("tiny-comparison", tmp_path)))


def test_old_children_are_done_and_the_others_are_not(study):
    done = {(child.method, child.seed) for child in study.children if child.result() is not None}
    assert done == {("uniform", 0), ("kray", 0)}
    assert [(child.method, child.seed) for child in study.todo()] == [("uniform", 1), ("kray", 1)]
    assert {key: len(values) for key, values in study.origins().items()} == {"commit": 1, "policy": 1, "prompts": 1}


def test_an_old_comparison_is_reported_with_the_same_figures(study):
    file = study.folder / "report" / "results.json"
    before = json.loads(file.read_text())
    file.unlink()
    report = write_report(study)
    assert Path(report.page).is_file()
    after = json.loads(file.read_text())
    assert after["methods"] == before["methods"]
    assert [verdict["outcome"] for verdict in after["verdicts"]] == [
        verdict["outcome"] for verdict in before["verdicts"]
    ]
