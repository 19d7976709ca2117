"""A job submitted to a Ray head that it starts itself: trained, interrupted, evaluated."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kray.ports import free_port

ROOT = Path(__file__).parents[3]


def job(name: str, *arguments: str, limit_s: float = 120.0) -> subprocess.CompletedProcess:
    command = [sys.executable, f"jobs/{name}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)


def test_submit_trains_stops_on_ctrl_c_and_evaluates(tmp_path, warm_policy):
    """What `make train` does, on a Ray head of this test's own: Ctrl-C, then resume to the end, then evaluate."""
    environment = os.environ | {
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{free_port()}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "MLFLOW_TRACKING_URI": "",
    }
    small = [
        "model.tiny=null",
        f"model.path={warm_policy}",
        f"run.dir={tmp_path}/runs",
        "prompts.train.size=128",
        "prompts.test.size=16",
        "evaluate.every=0",
        "evaluate.samples=2",
    ]
    command = [sys.executable, "jobs/submit.py", "jobs/train.py", "--config", "configs/tiny.yaml", *small]
    try:
        running = subprocess.Popen(
            [*command, "run.steps=100000"], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE
        )
        said = []
        for line in running.stdout:
            said.append(line)
            if line.startswith("step      3/"):
                running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130, "".join(said)
        text = "".join(said)
        assert "starting a head" in text
        assert "saved " in text
        assert "stopped by SIGTERM after" in text
        folder = re.search(r"results\s+(\S+)", text)[1]
        done_steps = int(re.search(r"stopped by SIGTERM after (\d+) of", text)[1])

        more = subprocess.run(
            [*command, f"run.steps={done_steps + 2}", "resume=auto"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert more.returncode == 0, more.stdout + more.stderr
        assert "starting a head" not in more.stdout
        assert f"resumed after step {done_steps}" in more.stdout
        for words in ("held-out accuracy", "effective rollouts", "mlflow ui", "resume=", "jobs/evaluate.py"):
            assert words in more.stdout

        wrong = subprocess.run(
            [*command, "plan.budgett=1"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )
        assert wrong.returncode == 2
        assert "did you mean plan.budget?" in wrong.stdout + wrong.stderr
    finally:
        pid_file = tmp_path / "cache/kray/ray-head.pid"
        if pid_file.exists():
            end_head(int(pid_file.read_text()))

    judged = job("evaluate", folder, "--json", str(tmp_path / "out.json"), "evaluate.samples=4", limit_s=180)
    assert judged.returncode == 0, judged.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["pass_at"]) == {"1", "2", "4"}
    assert found["prompts"] == 16
    assert found["pass_at"]["1"] == pytest.approx(found["accuracy"])


def end_head(pid: int) -> None:
    """Stop the Ray head that this test started, and its processes."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return
        except OSError:
            return
        time.sleep(0.2)
