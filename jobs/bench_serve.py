"""How the planner's service answers under load: latencies of what it does and of what it refuses, and whether anything is lost.

    python jobs/bench_serve.py --clients 200 --seconds 30 --json serve.json
    KRAY_API_KEY=... python jobs/bench_serve.py --url http://127.0.0.1:8001       # a service that runs already

Starts `jobs/serve.py planner` with a Ray of its own, unless --url names one. The exit code is 1 when something was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
from importlib.metadata import version
from pathlib import Path

from kray.bench.serve_load import Load, lines, put_under_load
from kray.bench.serve_process import planner_service
from kray.launch.main import guarded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="", help="of a service that runs, whose key is in KRAY_API_KEY")
    parser.add_argument("--clients", type=int, default=200, help="at a time, each with its run (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="for which steps are begun (default %(default)s)")
    parser.add_argument("--prompts", type=int, default=512, help="of each step (default %(default)s)")
    parser.add_argument(
        "--sources", type=int, default=20, help="of the prompts, each with its prior (default %(default)s)"
    )
    parser.add_argument("--budget", type=int, default=2048, help="rollouts of each step (default %(default)s)")
    parser.add_argument("--mode", default="static", help="plan.mode (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of rewards (default %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    options = parser.parse_args()

    def measure(url: str, key: str) -> dict:
        steps = (options.prompts, options.sources, options.budget, options.mode)
        return asyncio.run(put_under_load(Load(url, key, options.clients, options.seconds, *steps, options.seed)))

    if options.url:
        found = measure(options.url.rstrip("/"), os.environ.get("KRAY_API_KEY", ""))
    else:
        key = secrets.token_urlsafe(32)
        with planner_service(key, options.clients) as url:
            found = measure(url, key)
    print("\n".join(lines(found)))
    if options.json:
        held = {"python": platform.python_version(), "cores": os.cpu_count(), "settings": vars(options)}
        held["versions"] = {name: version(name) for name in ("ray", "fastapi", "uvicorn", "numpy", "scipy")}
        Path(options.json).write_text(json.dumps(held | found, indent=1) + "\n")
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    guarded(main)
