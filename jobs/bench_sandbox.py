"""What running model-written programs costs: verdicts a second, and how soon hostile programs are killed.

    python jobs/bench_sandbox.py
    python jobs/bench_sandbox.py --workers 8 --programs 400 --json sandbox.json

Three ordinary loads (a script with one case, a script with ten, ten function calls) through the Scorer as in a run, then
hostile programs one by one: seconds until the verdict, and how many confined processes are left (there should be none).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
from pathlib import Path

from kray.bench.sandbox import measure
from kray.launch.main import guarded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=100, help="of each ordinary load (default: 100)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="scorer processes (default: cores)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    arguments = parser.parse_args()
    results = asyncio.run(measure(arguments.programs, arguments.workers))
    print("\n".join(f"{name:<20} {figure}" for name, figure in results.items()))
    if arguments.json:
        versions = {"python": platform.python_version(), "kernel": platform.release(), "cores": os.cpu_count()}
        Path(arguments.json).write_text(
            json.dumps(versions | {"settings": vars(arguments), "results": results}, indent=1)
        )
    return 0


if __name__ == "__main__":
    guarded(main)
