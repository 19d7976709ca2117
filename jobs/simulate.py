"""Try the planner on a simulated population before renting GPUs: what each mode buys with the same rollouts.

    python jobs/simulate.py                                              # all modes on three made-up populations
    python jobs/simulate.py --population hard --modes uniform,static,online --seeds 20
    python jobs/simulate.py --population ~/kray-runs/quickstart-20261121-101500 --rollouts 16 --json what-if.json
    python jobs/simulate.py --population rates.jsonl --unit tokens       # one success rate a line
    MLFLOW_TRACKING_URI=... python jobs/simulate.py --population mlflow:<run id>
    python jobs/simulate.py --population u_shaped --curve --figure curve.png

A population is logit_normal, u_shaped, hard, a run or checkpoint folder of kray (its prompts' labels, with the uncertainty
that they leave), an MLflow run of kray (the same), or a JSONL file: a success rate a line, objects with success_rate or with
successes and trials, or one rollout a line with prompt_id and reward. "learned" is the gain in mean success rate of a policy
whose logits follow the realised GRPO gradient (kray/simulate/world.py); differences are paired by seed, with 95 % intervals.
It is a model of training: see what a mode does to your population, and let real runs decide.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np

from kray.errors import ConfigError
from kray.launch.main import guarded
from kray.simulate.populations import SHAPES, find_population
from kray.simulate.study import PLANS, WIDER, correlations, curve, figure, study, summary, table, title
from kray.simulate.world import World


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--population", action="append", help="may be given more than once (default: all three shapes)")
    parser.add_argument("--modes", help=f"comma-separated, of: {', '.join(PLANS)} (default: all)")
    parser.add_argument("--curve", action="store_true", help="instead: marginals, values, target sizes and floors")
    parser.add_argument(
        "--unit", choices=("rollouts", "tokens"), default="rollouts", help="what is equal for all modes"
    )
    for name, default, text in (
        ("prompts", 1024, "prompts in the population"),
        ("per-step", 128, "prompts a step"),
        ("rollouts", 8, "mean rollouts a prompt"),
        ("steps", 40, "steps"),
        ("seeds", 10, "seeds; each draws its own population"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
    parser.add_argument("--in-flight", type=float, default=0.25, help="share of a step's rollouts (default: 0.25)")
    parser.add_argument(
        "--noise", type=float, default=World.noise, help="of a rollout's gradient (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=World.rate, help="of learning; 0: drift alone (default: %(default)s)"
    )
    parser.add_argument("--figure", help="write a PNG to this file (with the population's name if there are several)")
    parser.add_argument("--json", help="write all figures of all seeds to this file")
    arguments = parser.parse_args()
    small = [name for name in ("prompts", "per_step", "rollouts", "steps", "seeds") if getattr(arguments, name) < 1]
    if small or not 0 < arguments.in_flight <= 1 or arguments.per_step > arguments.prompts:
        raise ConfigError(f"--{(small or ['in-flight or --per-step'])[0]} is out of range")
    plans = curve() if arguments.curve else dict(PLANS)
    wanted = [name.strip() for name in arguments.modes.split(",")] if arguments.modes else list(plans)
    unknown = [name for name in wanted if name not in plans]
    if unknown:
        raise ConfigError(f"--modes {unknown[0]} is not one of {', '.join(plans)}")
    plans = {name: plans[name] for name in dict.fromkeys(["uniform", *wanted])}
    results: dict[str, object] = {}
    versions = {"python": platform.python_version(), "numpy": np.__version__, "cores": os.cpu_count()}
    out = {**versions, "settings": vars(arguments), "results": results}
    names = arguments.population or list(SHAPES)
    for name in names:
        started = time.monotonic()
        world = World(
            find_population(name), arguments.prompts, arguments.per_step, arguments.rollouts, arguments.steps,
            arguments.in_flight, rate=arguments.rate, noise=arguments.noise, unit=arguments.unit,
        )  # fmt: skip
        found = study(world, plans, arguments.seeds)
        head = title(name, world, arguments.seeds)
        print(f"\n{head} ({time.monotonic() - started:.0f} s)\n{table(found)}")
        predicts = correlations(found, WIDER)
        print("correlation with learned over modes: " + ", ".join(f"{key} {r:.2f}" for key, r in predicts.items()))
        results[name] = {"seeds": found, "summary": summary(found), "correlations": predicts}
        if arguments.figure:
            path = Path(arguments.figure)
            figure(found, head).savefig(path if len(names) == 1 else path.with_stem(f"{path.stem}-{Path(name).stem}"))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(out, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    guarded(main)
