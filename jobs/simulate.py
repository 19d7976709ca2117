"""Simulate the planner on a population of prompts before renting GPUs: the effect of each mode with the same rollouts.

    python jobs/simulate.py                                              # all modes on three synthetic populations
    python jobs/simulate.py --population hard --modes uniform,static,online --seeds 20
    python jobs/simulate.py --population ~/kray-runs/quickstart-20261121-101500 --rollouts 16 --json what-if.json
    python jobs/simulate.py --population u_shaped --curve --figure curve.png
    python jobs/simulate.py --population u_shaped --estimators

A population is logit_normal, u_shaped, hard, a run or checkpoint folder of kray (its prompts' labels, with the uncertainty
that they leave), mlflow:<run id> of a run (the same), or a JSONL file: a success rate a line, objects with success_rate or
with successes and trials, or one rollout a line with prompt_id and reward. "learned" is the gain in mean success rate of a
policy whose logits follow the realised gradient (kray/simulate/policy.py), paired by seed, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import numpy as np

from kray.errors import ConfigError
from kray.launch.main import guarded
from kray.simulate.populations import SHAPES, find_population
from kray.simulate.study import CALIBRATED, ESTIMATORS, PLANS, choose_plans, curve, figure, report, study, title
from kray.simulate.world import World


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--population", action="append", help="may be given more than once (default: all three shapes)")
    parser.add_argument("--modes", help=f"comma-separated, of: {', '.join(PLANS)} (default: all)")
    parser.add_argument("--curve", action="store_true", help="instead: marginals, values, target sizes and floors")
    parser.add_argument(
        "--estimators",
        action="store_true",
        help="instead: baselines, rollouts of a prompt, epochs, as in docs/planner.md",
    )
    parser.add_argument("--unit", choices=("rollouts", "tokens"), default="rollouts", help="what all modes spend")
    for name, default, text in (
        ("prompts", 1024, "prompts in the population"),
        ("per-step", 128, "prompts a step"),
        ("rollouts", 8, "mean rollouts a prompt"),
        ("steps", 40, "steps"),
        ("seeds", 10, "seeds; each draws its own population"),
        ("in-flight", 0.25, "share of a step's rollouts that are generated at a time"),
        ("noise", World.noise, "noise of a rollout's gradient"),
        ("rate", World.rate, "rate of learning; 0: drift alone"),
        ("transfer", World.transfer, "share of the mean update that every prompt gets"),
        ("overshoot", World.overshoot, "cost of several passes over the same rollouts"),
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: {default})")
    parser.add_argument("--figure", help="write a PNG to this file (with the population's name if there are several)")
    parser.add_argument("--json", help="write all figures of all seeds to this file")
    parser.set_defaults(**CALIBRATED if parser.parse_args().estimators else {})
    arguments = parser.parse_args()
    small = [name for name in ("prompts", "per_step", "rollouts", "steps", "seeds") if getattr(arguments, name) < 1]
    if small or not 0 < arguments.in_flight <= 1 or arguments.per_step > arguments.prompts:
        raise ConfigError(f"--{(small or ['in-flight or --per-step'])[0]} is out of range")
    return arguments


def main() -> int:
    arguments = parse()
    plans = choose_plans(arguments.modes, curve() if arguments.curve else ESTIMATORS if arguments.estimators else PLANS)
    results: dict[str, object] = {}
    names = arguments.population or list(SHAPES)
    keys = ("prompts", "per_step", "rollouts", "steps", "in_flight", "rate", "noise", "transfer", "overshoot", "unit")
    for name in names:
        world = World(find_population(name), **{key: getattr(arguments, key) for key in keys})
        found, head = study(world, plans, arguments.seeds), title(name, world, arguments.seeds)
        text, results[name] = report(found, head)
        print(text)
        if arguments.figure:
            path = Path(arguments.figure)
            path = path if len(names) == 1 else path.with_stem(f"{path.stem}-{Path(name).stem}")
            figure(found, head).savefig(path)
    if arguments.json:
        out: dict[str, object] = {"python": platform.python_version(), "numpy": np.__version__, "cores": os.cpu_count()}
        out |= {"settings": vars(arguments), "results": results}
        Path(arguments.json).write_text(json.dumps(out, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    guarded(main)
