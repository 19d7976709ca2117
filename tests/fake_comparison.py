"""Folders of a comparison as its runs leave them, made without engines: for reports, figures and verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from kray.compare.study import DONE, RATES, VISITS, Child, Study

PROMPTS, TESTS = 64, 200


def write_child(child: Child, final: float, rows: float = 0.4, passes: float = 1.0, entropy: bool = True) -> None:
    """Write the files of a finished child.

    Args:
        child: Its configuration says how many rollouts and prompts a step has.
        final: Accuracy that it tends to, from .36.
        rows: Share of the rollouts that are trained on.
        passes: Over the rows.
        entropy: Evaluations measured it.
    """
    config, rng = child.config, np.random.default_rng([child.seed, hash_of(child.method)])
    steps, every = config.run.steps, config.evaluate.every
    budget, visited = config.plan.budget, config.prompts.per_step
    final += 0.008 * rng.normal()
    child.folder.mkdir(parents=True, exist_ok=True)
    start = np.clip(np.random.default_rng(7).beta(0.3, 0.5, TESTS), 1e-4, 1 - 1e-4)
    metrics, visits, rates = [], [], []

    def evaluate(step: int) -> None:
        share = 1 - np.exp(-3 * step / steps)
        accuracy = 0.36 + (final - 0.36) * share + 0.004 * rng.normal()
        test = start + (1 - start) * (accuracy - 0.36)
        rates.append({"step": step, "test": np.round(test, 6).tolist()})
        line = {"step": step, "eval/accuracy": accuracy + 0.01, "eval/greedy_accuracy": accuracy + 0.03}
        line |= {"eval/entropy": 0.4 - 0.2 * share + 0.01 * rng.normal()} if entropy else {}
        metrics.append(line | {"eval/exact_accuracy": float(test.mean())})

    evaluate(0)
    each = max(1, budget // visited)
    for step in range(1, steps + 1):
        metrics.append({
            "step": step, "timing_s/step": 0.5 + 0.001 * budget * rows * passes + 0.01 * rng.random(), "timing_s/exact": 0.1,
            "progress/rollouts": step * budget, "progress/tokens": step * budget * 4.5,
            "progress/epoch": step * visited / PROMPTS, "planner/admitted": visited, "train/rows": budget * rows * passes,
            "train/epochs": passes, "train/groups_ratio": rows, "train/entropy": 0.3 + 0.01 * rng.normal(),
            "group/effective_ratio_rollouts": 0.35, "group/effective_ratio_prompts": 0.35,
        })  # fmt: skip
        ids = [str((step * visited + k) % PROMPTS) for k in range(visited)]
        visits.append({
            "step": step, "ids": ids, "budgets": [each] * visited, "weights": [each] * visited, "trials": [each] * visited,
            "successes": rng.integers(0, each + 1, visited).tolist(), "tokens": [4 * each] * visited,
            "p": rng.random(visited).round(6).tolist(),
        })  # fmt: skip
        if step == steps or (every and step % every == 0):
            evaluate(step)
    for name, lines in (("metrics.jsonl", metrics), (VISITS, visits), (RATES, rates)):
        (child.folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    child.finish({"took_s": 60.0, "origin": {"policy": "a1", "prompts": "b2", "commit": "c3"}})
    assert (child.folder / DONE).is_file()


def write_children(study: Study, finals: dict[str, float], **of: dict) -> None:
    """Write all children of a study.

    Args:
        study: The study.
        finals: Method -> accuracy that it tends to.
        of: Method -> other arguments of `write_child`.
    """
    for child in study.children:
        write_child(child, finals[child.method], **of.get(child.method, {}))


def hash_of(name: str) -> int:
    """Return a number that is the same in every process."""
    return sum(ord(letter) * 31**k for k, letter in enumerate(name)) % 2**31


def study_file(folder: Path, base: Path, methods: str, steps: int = 80, every: int = 16, seeds: str = "0-5") -> str:
    """Write a comparison file and return its path."""
    file = folder / "study.yaml"
    file.write_text(
        f"base: {base}\nexact: true\nseeds: {seeds}\n"
        f"config: {{run: {{name: fake, steps: {steps}}}, plan: {{budget: 256}}, prompts: {{per_step: 32}}, "
        f"evaluate: {{every: {every}}}}}\nmethods:\n{methods}"
    )
    return str(file)
