"""jobs/serve.py from its start to Ctrl-C."""

from __future__ import annotations

import http.client
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

import psutil
from listening_sockets import open_to_others

ROOT = Path(__file__).parents[3]


PLANTED = "planted-key-planted-key-planted"


HERE = os.environ | {"PYTHONPATH": str(ROOT)}


def half_sent(port: int) -> socket.socket:
    """Return a connection on which half a request's head was sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(b"GET /v1/runs HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bea")
    return connection


def upgraded(port: int) -> tuple[int, dict]:
    """Return status and JSON of an attempt to open a web socket."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    headers |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Authorization": f"Bearer {PLANTED}"}
    connection.request("GET", "/v1/runs", headers=headers)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def test_service_runs_until_sigint_logs_no_key_and_is_reached_from_here_alone(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = tempfile.mkdtemp(prefix="kr-", dir="/tmp")  # short: Ray's sockets lie in it
    environment = HERE | {"KRAY_API_KEY": PLANTED, "RAY_TMPDIR": logs, "KRAY_CACHE": str(tmp_path)}
    # Where nothing has been started before.
    environment["HOME"] = str(tmp_path / "home")
    (tmp_path / "home").mkdir()
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(name, None)
    environment.pop("RAY_ADDRESS", None)
    state = tmp_path / "state"
    command = [sys.executable, "jobs/serve.py", "planner", "--port", str(port), "--drain-s", "2", "--state", str(state)]
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
        waiting = half_sent(port)
        status, refusal = upgraded(port)
        assert (status, refusal["error"]["code"]) == (400, 400)
        processes = [running.pid, *(child.pid for child in psutil.Process(running.pid).children(recursive=True))]
        assert len(processes) > 5
        assert open_to_others(processes) == []
        # The head's deadline: ten seconds.
        assert waiting.recv(100).startswith(b"HTTP/1.1 408 ")
        token = Path(environment["HOME"]) / ".ray" / "auth_token"
        assert [path.stat().st_mode & 0o777 for path in (token, token.parent)] == [0o600, 0o700]
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
