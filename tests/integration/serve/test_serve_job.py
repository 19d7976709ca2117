"""jobs/serve.py from its start to Ctrl-C."""

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

ROOT = Path(__file__).parents[3]


PLANTED = "planted-key-planted-key-planted"


HERE = os.environ | {"PYTHONPATH": str(ROOT)}


def test_service_runs_until_sigint_and_logs_no_key(tmp_path):
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
    lines = []
    try:
        for line in running.stdout:
            lines.append(line)
            if line.startswith("serving"):
                break
        assert f"serving    http://127.0.0.1:{port}\n" in lines, running.stderr.read()
        headers = {"Authorization": f"Bearer {PLANTED}", "Content-Type": "application/json"}
        body = json.dumps({"success_rate": [0.5, 0.1], "budget": 8}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/allocate", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert sum(json.load(answer)["budgets"]) == 8
        running.send_signal(signal.SIGINT)
        rest, errors = running.communicate(timeout=60)
        assert running.returncode == 0, errors
        assert "SIGINT: stopping" in rest
        files = [path for path in Path(logs).rglob("*") if path.is_file()]
        assert len(files) > 5
        found = [str(path) for path in files if PLANTED.encode() in path.read_bytes()]
        assert not found
        assert PLANTED not in "".join([*lines, rest, errors])
    finally:
        running.kill()
        running.wait(10)
        shutil.rmtree(logs, ignore_errors=True)
