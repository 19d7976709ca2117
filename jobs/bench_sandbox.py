"""What judging model-written programs costs: verdicts a second, and how soon hostile programs are ended.

    python jobs/bench_sandbox.py
    python jobs/bench_sandbox.py --workers 8 --programs 400 --json sandbox.json

Three honest loads (a script with one case, a script with ten, ten function calls) through the Scorer as in a run, then hostile
programs one by one: seconds from asking to the verdict, and how many confined processes are left (there should be none).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from pathlib import Path

from kray.launch.main import guarded
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
TIMEOUT_S = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=100, help="of each honest load (default: 100)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="scorer processes (default: cores)")
    parser.add_argument("--json", help="write all figures to this file")
    arguments = parser.parse_args()
    results = asyncio.run(measure(arguments.programs, arguments.workers))
    print("\n".join(f"{name:<20} {figure}" for name, figure in results.items()))
    if arguments.json:
        versions = {"python": platform.python_version(), "kernel": platform.release(), "cores": os.cpu_count()}
        Path(arguments.json).write_text(
            json.dumps(versions | {"settings": vars(arguments), "results": results}, indent=1)
        )
    return 0


async def measure(programs: int, workers: int) -> dict[str, dict[str, float]]:
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
                "left": left(),
            }
    return results


def left() -> int:
    """Confined processes that are alive."""
    lines = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))
    return sum(b"rewards/confined" in line for line in lines)


if __name__ == "__main__":
    guarded(main)
