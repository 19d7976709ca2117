"""Measures the sandbox of the code verifier: verdicts a second, and hostile programs. Used by jobs/bench_sandbox.py."""

from __future__ import annotations

import json
import time
from pathlib import Path

from kray.rewards import Scorer

SCRIPT, FUNCTION = "print(sum(map(int, input().split())))", "def add(a, b):\n    return a + b"
LOADS = {
    "script, 1 case": (SCRIPT, {"cases": [{"input": "1 2", "output": "3"}]}),
    "script, 10 cases": (SCRIPT, {"cases": [{"input": f"1 {i}", "output": str(1 + i)} for i in range(10)]}),
    "10 calls": (FUNCTION, {"calls": [{"call": "add", "args": [1, i], "value": 1 + i} for i in range(10)]}),
}
HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "endless output": "while True:\n    print('x' * 1000)",
    "memory bomb": "x = []\nwhile True:\n    x.append(bytearray(10**7))",
    "deaf endless loop": "import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True:\n    pass",
}
# Seconds for a program; hostile ones are killed then.
TIMEOUT_S = 2.0


async def measure(programs: int, workers: int) -> dict[str, dict[str, float]]:
    """Measure the ordinary loads, then the hostile programs one by one.

    Args:
        programs: Programs of each ordinary load.
        workers: Scoring processes.

    Returns:
        By load verdicts_per_s, right and programs; by hostile program reward, verdict_s and left, the number of confined
        processes that are still alive.
    """
    results: dict[str, dict[str, float]] = {}
    with Scorer("code", {"timeout_s": TIMEOUT_S}, workers) as scorer:
        await scorer.score([("", "pass", json.dumps(LOADS["script, 1 case"][1]))] * workers)
        for name, (program, answer) in LOADS.items():
            started = time.monotonic()
            outcomes = await scorer.score([("", program, json.dumps(answer))] * programs)
            took_s = time.monotonic() - started
            right = sum(outcome.reward == 1.0 for outcome in outcomes)
            results[name] = {"verdicts_per_s": round(programs / took_s, 1), "right": right, "programs": programs}
        for name, program in HOSTILE.items():
            started = time.monotonic()
            outcome = await scorer.score_one("", program, json.dumps(LOADS["script, 1 case"][1]))
            results[name] = {
                "reward": outcome.reward or 0.0,
                "verdict_s": round(time.monotonic() - started, 2),
                "left": _confined_processes(),
            }
    return results


def _confined_processes() -> int:
    """Count the confined processes that are alive."""
    lines = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))
    return sum(b"rewards/confined" in line for line in lines)
