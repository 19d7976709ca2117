"""How a run stands: step, rates, engines, budgets, accuracy, remaining time. From another shell, while it goes on or after.

    python jobs/status.py                                       # the run that goes on, else the newest one
    python jobs/status.py ~/kray-runs/quickstart-20261121-101500 --watch
    python jobs/status.py --json

Asks the run's driver where its Ray can be reached (RAY_ADDRESS, or what the run's folder says); otherwise reads the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kray.cluster.address import require_cluster
from kray.cluster.session import LOCAL_RAY
from kray.launch.main import guarded
from kray.monitor.client import Asker, Sight
from kray.monitor.view import screen

RESTART_S = 120.0  # in which a driver that died is up again


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", nargs="?", default="", help="a run's folder or its name (default: what runs, else the newest)"
    )
    parser.add_argument("--dir", default="~/kray-runs", help="where runs are looked for (default ~/kray-runs)")
    parser.add_argument("--watch", action="store_true", help="go on until the run ends or Ctrl-C")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between two looks (default 2)")
    parser.add_argument("--json", action="store_true", help="one JSON object for each look")
    options = parser.parse_args()
    os.environ.update(LOCAL_RAY)  # before Ray is loaded
    sight = Sight(options.run, Path(options.dir).expanduser(), require_cluster(), Asker)
    try:
        return watch(sight, options) if options.watch else show(sight.look(), options.json)
    finally:
        sight.close()


def show(found: dict[str, Any], as_json: bool) -> int:
    from rich.console import Console

    if as_json:
        print(json.dumps(found), flush=True)
    else:
        Console(highlight=False).print(screen(found), soft_wrap=True)
    return 0


def watch(sight: Sight, options: argparse.Namespace) -> int:
    """Until the run has ended, or its driver was not seen for as long as it takes to start another."""
    from rich.live import Live

    looks = going(sight, options.every)
    if options.json:
        for found in looks:
            show(found, True)
        return 0
    with Live(auto_refresh=False, screen=False) as live:
        for found in looks:
            live.update(screen(found), refresh=True)
    return 0


def going(sight: Sight, every_s: float) -> Iterator[dict[str, Any]]:
    """Looks at a run while it goes on."""
    seen = time.monotonic()
    while True:
        yield (found := sight.look())
        seen = time.monotonic() if found["live"] else seen
        over = found["state"] == "finished" or not (found["live"] or sight.announced)
        if over or time.monotonic() - seen > RESTART_S:
            return
        time.sleep(every_s)


if __name__ == "__main__":
    guarded(main)
