"""Show the status of a run: step, rates, engines, budgets, accuracy, remaining time; while it runs or afterwards.

    python jobs/status.py                                       # the run that is under way, else the newest one
    python jobs/status.py ~/kray-runs/quickstart-20261121-101500 --watch
    python jobs/status.py --json

The status comes from the run's driver if its Ray can be reached (RAY_ADDRESS, or driver.json in the run folder), else from
the folder.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kray.cluster.address import require_cluster
from kray.cluster.session import LOCAL_RAY
from kray.launch.main import guarded
from kray.monitor.client import RunMonitor
from kray.monitor.view import render


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", nargs="?", default="", help="a run folder or its name (default: the run under way, else the newest one)"
    )
    parser.add_argument("--dir", default="~/kray-runs", help="the folder of run folders (default ~/kray-runs)")
    parser.add_argument("--watch", action="store_true", help="repeat until the run ends or Ctrl-C")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between two updates (default 2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each update")
    arguments = parser.parse_args()
    os.environ.update(LOCAL_RAY)
    monitor = RunMonitor(arguments.run, Path(arguments.dir).expanduser(), require_cluster())
    try:
        show(monitor.poll(arguments.every) if arguments.watch else [monitor.status()], arguments.json)
    finally:
        monitor.close()
    return 0


def show(statuses: Iterable[dict[str, Any]], as_json: bool) -> None:
    """Print one status after the other as JSON, or as a view that each of them replaces."""
    from rich.live import Live

    if as_json:
        for status in statuses:
            print(json.dumps(status), flush=True)
        return
    with Live(auto_refresh=False, screen=False) as live:
        for status in statuses:
            live.update(render(status), refresh=True)


if __name__ == "__main__":
    guarded(main)
