"""jobs/serve.py as a person uses it: help, bad input, and one service from its start to Ctrl-C, without a secret in a log."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from kray.errors import ConfigError
from kray.serve.access import Access
from kray.serve.gate import Limits
from kray.serve.rewards_api import ScoringSpec
from kray.serve.services import planner_application, rewards_application

ROOT = Path(__file__).parents[3]
HERE = os.environ | {"PYTHONPATH": str(ROOT)}


def run_serve(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "jobs/serve.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=HERE, capture_output=True, text=True, timeout=120)


def test_help_shows_examples(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "serve.py"))["main"]()
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("python jobs/serve.py") >= 4


def test_invalid_input_exits_with_2():
    done = run_serve("planner", "--no-key", "--host", "0.0.0.0")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("config error: --no-key goes with a loopback --host only")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["policy", "./nowhere"], "nowhere is not a folder"),
        (
            ["policy", str(ROOT / "configs")],
            "configs is neither a run nor a complete checkpoint nor a Hugging Face folder",
        ),
        (["policy", str(ROOT), "--gpus", "2"], "--gpus must be 0 or 1"),
        (["rewards", "--verifier", "nowhere:judge"], '--verifier: verifier "nowhere:judge"'),
        (["rewards", "--workers", "0"], "--workers must be at least 1, not 0"),
        (["planner", "--state", "/proc/none"], "--state: cannot create /proc/none"),
        (["planner", "--concurrency", "0"], "--concurrency"),
        (["planner", "--request-mib", "nan"], "--request-mib"),
    ],
)
def test_invalid_options_are_named_before_the_start(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve.py", *arguments])
    with pytest.raises(ConfigError) as caught:
        runpy.run_path(str(ROOT / "jobs" / "serve.py"))["main"]()
    assert message in str(caught.value)


def test_replicas_scale_between_the_bounds():
    access = Access(replicas=(0, 3), limits=Limits(concurrency=10))
    application = rewards_application(ScoringSpec(workers=2), access, "")
    config = application._bound_deployment._deployment_config
    scaling = config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (0, 3, 5)
    assert config.graceful_shutdown_timeout_s == access.drain_s
    fixed = planner_application(Access(), "", 4, 100, "")._bound_deployment._deployment_config
    assert (fixed.num_replicas, fixed.autoscaling_config) == (1, None)
