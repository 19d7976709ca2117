"""jobs/serve.py as a person uses it: help, bad input, and one service from its start to Ctrl-C, without a secret in a log."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLANTED = "planted-key-planted-key-planted"
HERE = os.environ | {"PYTHONPATH": str(ROOT)}


def door(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "jobs/serve.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=HERE, capture_output=True, text=True, timeout=120)


def test_help_teaches_with_examples():
    done = door("--help")
    assert done.returncode == 0
    assert done.stdout.count("python jobs/serve.py") >= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["policy", "./nowhere"], "config error: {root}/nowhere is not a folder"),
        (
            ["policy", "configs"],
            "config error: {root}/configs is no run, no complete checkpoint and no Hugging Face folder",
        ),
        (["planner", "--no-key", "--host", "0.0.0.0"], "config error: --no-key goes with a loopback --host only"),
        (["rewards", "--verifier", "nowhere:judge"], 'config error: --verifier: verifier "nowhere:judge"'),
        (["planner", "--state", "/proc/none"], "config error: --state: /proc/none cannot be made"),
        (["planner", "--concurrency", "0"], "config error: --concurrency"),
    ],
)
def test_bad_input_ends_with_2_and_one_message(arguments, message):
    done = door(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(message.format(root=ROOT))
    assert len(done.stderr.splitlines()) == 1


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
