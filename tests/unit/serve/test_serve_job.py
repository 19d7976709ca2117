"""jobs/serve.py as a person uses it: help, bad input, and one service from its start to Ctrl-C, without a secret in a log."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest

from kray.errors import ConfigError
from kray.serve.access import Access
from kray.serve.gate import Limits
from kray.serve.rewards_api import JudgeSpec
from kray.serve.services import planner_application, rewards_application

ROOT = Path(__file__).parents[3]
PLANTED = "planted-key-planted-key-planted"
HERE = os.environ | {"PYTHONPATH": str(ROOT)}


def door(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "jobs/serve.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=HERE, capture_output=True, text=True, timeout=120)


def test_help_teaches_with_examples(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "serve.py"))["main"]()
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("python jobs/serve.py") >= 4


def test_bad_input_ends_with_2_and_one_message():
    done = door("planner", "--no-key", "--host", "0.0.0.0")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("config error: --no-key goes with a loopback --host only")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["policy", "./nowhere"], "nowhere is not a folder"),
        (["policy", str(ROOT / "configs")], "configs is no run, no complete checkpoint and no Hugging Face folder"),
        (["policy", str(ROOT), "--gpus", "2"], "--gpus must be 0 or 1"),
        (["rewards", "--verifier", "nowhere:judge"], '--verifier: verifier "nowhere:judge"'),
        (["rewards", "--workers", "0"], "--workers must be at least 1, not 0"),
        (["planner", "--state", "/proc/none"], "--state: /proc/none cannot be made"),
        (["planner", "--concurrency", "0"], "--concurrency"),
        (["planner", "--request-mib", "nan"], "--request-mib"),
    ],
)
def test_what_is_wrong_is_named_before_anything_starts(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve.py", *arguments])
    with pytest.raises(ConfigError) as caught:
        runpy.run_path(str(ROOT / "jobs" / "serve.py"))["main"]()
    assert message in str(caught.value)


def test_replicas_follow_the_load_between_the_bounds():
    access = Access(replicas=(0, 3), limits=Limits(under_way=10))
    application = rewards_application(JudgeSpec(workers=2), access, "")
    config = application._bound_deployment._deployment_config
    scaling = config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (0, 3, 5)
    assert config.graceful_shutdown_timeout_s == access.drain_s
    fixed = planner_application(Access(), "", 4, 100, "")._bound_deployment._deployment_config
    assert (fixed.num_replicas, fixed.autoscaling_config) == (1, None)


@pytest.mark.slow
def test_a_service_starts_answers_and_ends_on_ctrl_c_without_its_key_in_any_log(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = tempfile.mkdtemp(prefix="kr-", dir="/tmp")  # short: Ray's sockets lie in it
    environment = HERE | {"KRAY_API_KEY": PLANTED, "RAY_TMPDIR": logs, "KRAY_CACHE": str(tmp_path)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "jobs/serve.py", "planner", "--port", str(port), "--drain-s", "2"]
    running = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said = []
    try:
        for line in running.stdout:
            said.append(line)
            if line.startswith("serving"):
                break
        assert f"serving    http://127.0.0.1:{port}\n" in said, running.stderr.read()
        headers = {"Authorization": f"Bearer {PLANTED}", "Content-Type": "application/json"}
        body = json.dumps({"success_rate": [0.5, 0.1], "budget": 8}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/allocate", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert sum(json.load(answer)["budgets"]) == 8
        running.send_signal(signal.SIGINT)
        rest, errors = running.communicate(timeout=60)
        assert running.returncode == 0, errors
        assert "SIGINT: ending" in rest
        files = [path for path in Path(logs).rglob("*") if path.is_file()]
        assert len(files) > 5
        found = [str(path) for path in files if PLANTED.encode() in path.read_bytes()]
        assert not found
        assert PLANTED not in "".join([*said, rest, errors])
    finally:
        running.kill()
        running.wait(10)
        shutil.rmtree(logs, ignore_errors=True)
