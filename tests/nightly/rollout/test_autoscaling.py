"""The pool on Ray's real autoscaler: engines request nodes, idle engines release them, preemption is no failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]


def test_pool_scales_from_zero_and_survives_preemption(tied_policy):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        environment.pop(name, None)
    program = [sys.executable, str(Path(__file__).with_name("autoscaled_pool.py")), str(tied_policy)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=500, env=environment, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert said, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(said[0].removeprefix("FOUND "))
    assert found["gap_without_engines_is_nan"]
    assert found["gap_of_nobody_is_nan"]
    assert found["nodes_before"] == found["nodes_after"] == 0
    assert found["first"] == 60 * 8
    assert found["second"], "rollouts of the second time are missing"
    assert found["versions"] == [1]
    assert found["preemptions"] >= 1
    assert found["losses"] == found["restarts"] == 0
    assert any("to 2 engines" in line for line in found["lines"])
    assert any("stopped idle" in line for line in found["lines"])
