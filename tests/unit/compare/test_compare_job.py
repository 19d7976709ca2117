"""jobs/compare.py --check."""

from __future__ import annotations

from pathlib import Path

import pytest
from inline_jobs import run_job

from kray.compare.study import load_study
from kray.driver.remote import driver_actor, follow
from kray.train.start_model import find_model

ROOT = Path(__file__).parents[3]


QUICK = str(ROOT / "configs" / "compare-quick.yaml")


def test_the_door_says_what_would_run_and_names_what_is_wrong(tmp_path):
    done = run_job("compare", QUICK, "--check", "--seeds", "0-4", "--dir", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "3 methods x 5 seeds" in done.stdout
    assert "to run   15" in done.stdout
    done = run_job("compare", QUICK, "--check", "--methods", "unifrom")
    assert done.returncode == 2
    assert "config error" in done.stderr
    assert "no method 'unifrom'" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def compare(ray_local, tmp_path, monkeypatch):
    """Runs some of the quick comparison into a folder; returns its Outcome and the lines it said."""
    from kray.compare.run import Comparison

    monkeypatch.setenv("KRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(folder: str, methods: str, seeds: str):
        study = load_study(QUICK, methods, seeds, str(tmp_path / folder))
        study.folder.mkdir(exist_ok=True)
        actor = driver_actor(Comparison, study.folder)
        return follow(actor.remote(study, find_model(study.base), {}), "compare", study.folder)

    return run
