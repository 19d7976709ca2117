"""jobs/compare.py --check."""

from __future__ import annotations

import re
from pathlib import Path

from inline_jobs import run_job

from kray.driver.run_lock import lock_folder

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


def test_a_report_is_not_written_while_another_job_works_in_the_folder(tmp_path):
    arguments = (QUICK, "--report", "--dir", str(tmp_path / "out"))
    done = run_job("compare", *arguments)
    assert done.returncode == 0, done.stderr
    assert "not done  uniform seed 0, kray seed 0, exact_p seed 0" in done.stdout
    assert not (tmp_path / "out").exists()
    with lock_folder(tmp_path / "out", "a comparison"):
        done = run_job("compare", *arguments)
        assert done.returncode == 2
        assert re.search(r"is in use by .*\(a comparison, process", done.stderr)
    assert run_job("compare", *arguments).returncode == 0
