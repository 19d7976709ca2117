"""Whether the driver keeps up with a large cluster: a million prompts, a thousand engines, no GPU.

    python jobs/bench_scale.py --json scale.json
    python jobs/bench_scale.py --engines 1000 --prompts 8192 --tokens 700

The real planner, schedule, pool, collector and scorer of a run; engines are simulated and answer at once. All is
processor time of the driver's one thread, on this machine. docs/scaling.md discusses the figures.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kray.cluster.session import LOCAL_RAY
from kray.launch.main import guarded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known", type=int, default=1_000_000, help="prompts with beliefs (default 1000000)")
    parser.add_argument("--engines", type=int, nargs="+", default=[10, 100, 1000], help="default 10 100 1000")
    parser.add_argument("--prompts", type=int, nargs="+", default=[2048, 8192], help="a step (default 2048 8192)")
    parser.add_argument("--rollouts", type=int, default=8, help="of a prompt, on average (default 8)")
    parser.add_argument("--tokens", type=int, default=256, help="of a response, on average (default 256)")
    parser.add_argument("--workers", type=int, default=1, help="judging processes (default 1)")
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    options = parser.parse_args()
    os.environ.update(LOCAL_RAY)
    found = measure(options)
    if options.json:
        from kray.bench.step import write

        versions = {name: version(name) for name in ("ray", "numpy", "transformers")} | {
            "python": platform.python_version()
        }
        write(options.json, found | {"settings": vars(options), "cores": os.cpu_count(), "versions": versions})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from kray.bench import driver_scale as scale
    from kray.bench.engine_model import schedule_overhead_s

    with tempfile.TemporaryDirectory(prefix="kray-scale-") as folder:
        known, planner = scale.beliefs(options.known, Path(folder))
    costs = {n: 1e6 * schedule_overhead_s(n, 100_000) for n in (1, 100, 1000)}
    print("schedule alone: " + ", ".join(f"{us:.1f} us a task on {n} engines" for n, us in costs.items()))
    steps, first = [], 0
    for prompts in options.prompts:
        for engines in options.engines:
            row, collected = scale.step(
                planner,
                engines,
                prompts,
                options.rollouts,
                options.tokens,
                first % (options.known - prompts),
                options.workers,
            )
            first += prompts
            steps.append(row)
            parts = ", ".join(
                f"{name} {seconds:.2f}" for name, seconds in row["parts_s"].items() if name != "simulation"
            )
            print(
                f"{engines:5} engines, {prompts} prompts, {row['rollouts']} rollouts, {row['tasks']} tasks: collected in "
                f"{row['collect_s']:.2f} s ({row['driver_s']:.2f} s of the driver, {row['us_a_task']:.0f} us a task, "
                f"{row['rollouts_per_s']:,.0f} rollouts/s), {row['memory_gib']:.1f} GiB; of which {parts}"
            )
    rows = scale.rows_row(collected)
    print(f"to the learner: rows {rows['rows_s']:.2f} s, {rows['mib']:.0f} MiB, pickled in {rows['pickle_s']:.2f} s")
    return {"beliefs": known, "schedule_us": costs, "steps": steps, "rows": rows}


if __name__ == "__main__":
    guarded(main)
