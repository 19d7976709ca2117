"""Parts of the whole-step benchmark on real engines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_parts_alone_make_the_rollouts_of_the_run(tmp_path):
    """So the two times that are compared are times of the same work, learned weights included."""
    small = ["--prompts", "16", "--rollouts", "4", "--steps", "3", "--warm", "1", "model.tiny.warmup_steps=40"]
    command = [sys.executable, "jobs/bench_step.py", "--skip-trl", "--json", f"{tmp_path}/step.json", *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    results = json.loads((tmp_path / "step.json").read_text())["results"]
    assert results["same_work"] == 1.0
    assert len(results["alone"]["tokens"]) == 4
    assert results["step_over_parts"] > 0
