"""Whether the driver keeps up with a large cluster: a million prompts, a thousand engines, no GPU.

    python jobs/bench_scale.py --json scale.json
    python jobs/bench_scale.py --engines 1000 --prompts 8192 --tokens 700

The real planner, schedule, pool, collector and scorer of a run; engines are simulated and answer at once. All is
processor time of the driver's one thread, on this machine. docs/scaling.md discusses the figures.
"""

from __future__ import annotations

import argparse
import os

from kray.cluster.session import LOCAL_RAY
from kray.launch.main import guarded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known", type=int, default=1_000_000, help="prompts with beliefs (default 1000000)")
    parser.add_argument("--engines", type=int, nargs="+", default=[10, 100, 1000], help="default 10 100 1000")
    parser.add_argument("--prompts", type=int, nargs="+", default=[2048, 8192], help="a step (default 2048 8192)")
    parser.add_argument("--rollouts", type=int, default=8, help="of a prompt, on average (default 8)")
    parser.add_argument("--tokens", type=int, default=256, help="of a response, on average (default 256)")
    parser.add_argument("--workers", type=int, default=1, help="scoring processes (default 1)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    options = parser.parse_args()
    # Ray reads it when it is imported.
    os.environ.update(LOCAL_RAY)
    from kray.bench import driver_scale as scale
    from kray.bench.figures_file import versions, write_figures

    sizes = (options.engines, options.prompts, options.rollouts, options.tokens)
    found = scale.measure(options.known, *sizes, options.workers)
    if options.json:
        settings = {"settings": vars(options), "cores": os.cpu_count()}
        write_figures(options.json, found | settings | {"versions": versions("ray", "numpy", "transformers")})


if __name__ == "__main__":
    guarded(main)
