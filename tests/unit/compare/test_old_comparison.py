"""A comparison folder that an earlier version wrote is taken up and reported as that version did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from old_files import FIXTURES, unpack

from kray.compare import settings
from kray.compare.report import write_report
from kray.compare.study import DONE, Study, load_study
from kray.errors import ConfigError


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
    for method, numbers in before["methods"].items():
        assert {key: after["methods"][method][key] for key in numbers} == numbers
    known, was = ({verdict["claim"]: verdict["outcome"] for verdict in file["verdicts"]} for file in (after, before))
    measured = {claim: outcome for claim, outcome in was.items() if outcome != "not measured"}
    assert measured
    assert known.items() >= measured.items()


# A key that any configuration has, in the part of an earlier version's newest key.
KEY = "updates"


@pytest.fixture
def older(study) -> Study:
    """A study whose done children were written before kray had the key train.updates."""
    for child in study.children:
        file = child.folder / "config.yaml"
        if file.is_file():
            tree = yaml.safe_load(file.read_text())
            del tree["train"][KEY]
            file.write_text(yaml.safe_dump(tree))
            kept = settings._tree(file)
            now = settings._own(child.config)
            own = {key: value for key, value in now.items() if not settings._is_newer(key.split("."), kept)}
            done = json.loads((child.folder / DONE).read_text())
            done["settings"] = settings._digest(own, [False, "sampled"])
            (child.folder / DONE).write_text(json.dumps(done))
    return study


@pytest.mark.parametrize(("before", "now", "accepted"), [(1, 1, True), (1, 2, False), (2, 2, True), (2, 1, False)])
def test_a_newer_key_changes_old_results_unless_it_does_what_was_done_before(older, monkeypatch, before, now, accepted):
    monkeypatch.setitem(settings.BEFORE, f"train.{KEY}", before)
    study = load_study(
        str(FIXTURES / "tiny-comparison.yaml"), folder=str(older.folder), overrides=[f"train.{KEY}={now}"]
    )
    if accepted:
        assert len(study.todo()) == 2
    else:
        with pytest.raises(ConfigError, match="other settings"):
            study.todo()


@pytest.mark.parametrize(
    ("overrides", "accepted"),
    [
        (["train.advantage_floor=0.5", "train.lr_final=0.3", "plan.calibrate=false"], True),
        (["train.baseline=belief"], False),
        (["train.baseline=batch"], False),
        (["train.lr_schedule=linear"], False),
        (["train.epochs=2"], False),
        (["model.tiny.draft_digits=2"], False),
    ],
)
def test_newer_keys_that_change_nothing_leave_old_children_done(study, overrides, accepted):
    changed = load_study(str(FIXTURES / "tiny-comparison.yaml"), folder=str(study.folder), overrides=overrides)
    if accepted:
        assert len(changed.todo()) == 2
    else:
        with pytest.raises(ConfigError, match="other settings"):
            changed.todo()


def test_an_old_child_with_another_value_of_an_old_key_is_not_taken(older):
    study = load_study(str(FIXTURES / "tiny-comparison.yaml"), folder=str(older.folder), overrides=["train.lr=0.1"])
    with pytest.raises(ConfigError, match=r"train.lr was .* and is 0.1"):
        study.todo()
