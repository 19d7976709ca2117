"""jobs/compare.py --check."""

from __future__ import annotations

from pathlib import Path

from inline_jobs import run_job

ROOT = Path(__file__).parents[3]


QUICK = str(ROOT / "configs" / "compare-quick.yaml")


def test_check_counts_runs_and_names_an_unknown_method(tmp_path):
    done = run_job("compare", QUICK, "--check", "--seeds", "0-4", "--dir", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "3 methods x 5 seeds" in done.stdout
    assert "to run   15" in done.stdout
    done = run_job("compare", QUICK, "--check", "--methods", "unifrom")
    assert done.returncode == 2
    assert "config error" in done.stderr
    assert "no method 'unifrom'" in done.stderr
    assert not (tmp_path / "out").exists()
