"""A planner's service in processes of its own, for measurements."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from kray.errors import KrayError
from kray.ports import free_port

ROOT = Path(__file__).parents[2]
# Seconds for the service to start, and to end.
START_S = 180.0
END_S = 90.0


@contextlib.contextmanager
def planner_service(key: str, max_runs: int) -> Iterator[str]:
    """Run `jobs/serve.py planner` with a Ray of its own; yield its address.

    Args:
        key: The key that requests must carry.
        max_runs: Most runs at a time.

    Raises:
        KrayError: It does not start.
    """
    port = free_port()
    # A short name: Ray's sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="kr-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        state = Path(folder) / "beliefs"
        command = [
            sys.executable,
            str(ROOT / "jobs" / "serve.py"),
            "planner",
            "--port",
            str(port),
            "--state",
            str(state),
        ]
        command += ["--max-runs", str(max_runs), "--drain-s", "5"]
        environment = os.environ | {"KRAY_API_KEY": key, "RAY_TMPDIR": folder, "PYTHONPATH": str(ROOT)}
        environment.pop("RAY_ADDRESS", None)
        running = subprocess.Popen(
            command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            yield _address(running)
        finally:
            running.send_signal(signal.SIGINT)
            try:
                running.wait(END_S)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def _address(running: subprocess.Popen[str]) -> str:
    """Return the address that the service prints when it is up; its output is read to its end in a thread."""
    printed: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert running.stdout is not None
        for line in running.stdout:
            printed.put(line)
        printed.put("")

    threading.Thread(target=read, daemon=True).start()
    said = []
    with contextlib.suppress(queue.Empty):
        while line := printed.get(timeout=START_S):
            said.append(line)
            if line.startswith("serving"):
                return line.split()[1]
    raise KrayError(f"the service did not start: {''.join(said)[-800:]}")
