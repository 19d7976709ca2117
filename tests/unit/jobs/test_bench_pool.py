"""jobs/bench_pool.py on simulated engines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_simulated_pools_are_measured_against_the_bound(tmp_path):
    file = tmp_path / "pool.json"
    command = [
        sys.executable,
        "jobs/bench_pool.py",
        "--engines",
        "1",
        "4",
        "--prompts",
        "8",
        "--seeds",
        "2",
        "--json",
        file,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert [row["engines"] for row in found["steps"]] == [1, 4]
    assert all(row[name] >= 1 for row in found["steps"] for name in ("static", "1 batch", "3 batches", "singles"))
    assert found["settings"]["seeds"] == 2
    assert {"python", "numpy", "cores", "overhead_us"} <= found.keys()
