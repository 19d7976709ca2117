"""Whether a long run degrades: memory, descriptors, object store, disk and step time over hundreds of steps.

    python jobs/bench_soak.py --json soak.json                          # 300 steps of a tiny policy, some minutes
    python jobs/bench_soak.py --steps 600 --overlap                     # generation ahead of the learner, rollouts used twice
    python jobs/bench_soak.py --steps 2000 rollout.engines=2 train.ranks=2

Real engine, learner, MLflow, checkpoints and evaluations. Prints medians of the first and the last third of the steps and the
slope a 100 steps of every series (memory, descriptors and threads of each kind of process, objects, records and logs on disk,
seconds), then the verdict; ends with exit code 1 when a series exceeds its bound. kib: on disk; mib: in memory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import asdict

from kray.bench import soak
from kray.bench.figures_file import versions, write_figures
from kray.cluster.session import connect
from kray.errors import KrayError
from kray.launch.main import guarded
from kray.train.start_model import find_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tiny.yaml", help="default configs/tiny.yaml")
    parser.add_argument("--steps", type=int, default=300, help="default 300")
    parser.add_argument(
        "--overlap", action="store_true", help="async.max_staleness 1, train.epochs 2 and train.thin 0.5"
    )
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between samples (default 2)")
    parser.add_argument("--keep", default="", metavar="DIR", help="keep the run's folder here (default: delete it)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="overrides of single keys")
    options = parser.parse_intermixed_args()
    if os.environ.pop("RAY_ADDRESS", ""):
        print("note: RAY_ADDRESS is ignored: the measured cluster must be this process's own", flush=True)
    with tempfile.TemporaryDirectory(prefix="kray-soak-") as folder:
        config = soak.soak_config(
            options.config, options.keep or folder, options.steps, options.overrides, options.overlap
        )
        model = find_model(config)
        connect(config)
        found = soak.run_soak(config, model, options.every)
    verdict = soak.verdict(found["series"], options.steps)
    print(soak.table(found["series"]))
    print(f"verdict: {verdict['sentence']}")
    if options.json:
        installed = versions("ray", "torch", "mlflow")
        settings = {"options": vars(options), "config": asdict(config), "cores": os.cpu_count(), "versions": installed}
        write_figures(options.json, found | {"verdict": verdict, "settings": settings})
    if not verdict["holds"]:
        raise KrayError(f"soak: {verdict['sentence']}")


if __name__ == "__main__":
    guarded(main)
