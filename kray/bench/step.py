"""Measures a step run by the driver and how its time is divided. Used by jobs/bench_step.py.

The whole step counts: from one line of metrics.jsonl to the next, including what the driver does between steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from kray.cluster.session import connect
from kray.config import KrayConfig, load_checked
from kray.driver.remote import run_on_cluster
from kray.driver.run_folder import run_folder
from kray.metrics import (
    GROUP_EFFECTIVE_RATIO_PROMPTS,
    PROGRESS_ROLLOUTS,
    PROGRESS_TOKENS,
    TIMING_S_IDLE,
    TIMING_S_STEP,
    TRAIN_UPDATE_S,
    timing,
)
from kray.train.start_model import find_model

PARTS = ("plan", "generate", "reward", "update", "sync")
# Cores kept busy by other processes above which figures are unreliable.
QUIET_CORES = 0.25
# What we aim at without overlap of generation and update.
STEP_OVER_PARTS, RATE_OVER_TRL = 1.1, 2.0
# The same number of rollouts for every prompt, as in TRL; nothing but steps in the run.
OVERRIDES = (
    "plan.mode=uniform",
    "train.epochs=1",
    "train.thin=1",
    "train.lr_schedule=constant",
    "train.lr_warmup_steps=0",
    "run.checkpoint_every=0",
    "evaluate.every=0",
    "evaluate.samples=1",
    "evaluate.greedy=false",
    "prompts.test.size=64",
)


def step_config(
    path: str, folder: str, prompts: int, rollouts: int, steps: int, overrides: Sequence[str]
) -> KrayConfig:
    """Return a configuration whose steps have `rollouts` rollouts of each of `prompts` prompts; results under `folder`."""
    own = [
        f"run.dir={folder}",
        f"run.steps={steps}",
        f"prompts.per_step={prompts}",
        f"plan.budget={prompts * rollouts}",
    ]
    return load_checked(path, [*OVERRIDES, *own, *overrides])


def run_kray(config: KrayConfig, model: str, warm: int) -> dict[str, Any]:
    """Train through the real driver; return medians over the steps after the first `warm`. Needs a Ray cluster."""
    folder = run_folder(config)
    started = time.monotonic()
    run_on_cluster(config, model, folder, None, "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return step_times(rows, warm) | {"run_s": time.monotonic() - started, "folder": str(folder)}


def step_times(rows: list[dict[str, Any]], warm: int) -> dict[str, Any]:
    """Return from the lines of metrics.jsonl: seconds of a step and its parts, rollouts a second, work of each step."""
    ends = [row["time"] for row in rows if TIMING_S_STEP in row or row["step"] == 0]
    steps = [row for row in rows if TIMING_S_STEP in row]
    whole_s = np.diff(ends)[warm:]
    kept = steps[warm:]
    rollouts = np.diff([0.0, *(row[PROGRESS_ROLLOUTS] for row in steps)])
    tokens = np.diff([0.0, *(row[PROGRESS_TOKENS] for row in steps)])
    split = {part: float(np.median([row[timing(part)] for row in kept])) for part in PARTS}
    inside = np.array([row[TIMING_S_STEP] for row in kept])
    split["between parts"] = float(np.median(inside - [sum(row[timing(p)] for p in PARTS) for row in kept]))
    split["between steps"] = float(np.median(whole_s - inside))
    return {
        "step_s": float(np.median(whole_s)),
        "step_p90_s": float(np.quantile(whole_s, 0.9)),
        "rollouts_per_s": float(np.median(rollouts[warm:] / whole_s)),
        "split_s": split,
        "engine_busy_s": float(np.median([row[TIMING_S_STEP] - row[TIMING_S_IDLE] for row in kept])),
        "learner_busy_s": float(np.median([row.get(TRAIN_UPDATE_S, 0.0) for row in kept])),
        "mixed_share": float(np.mean([row[GROUP_EFFECTIVE_RATIO_PROMPTS] for row in kept])),
        "tokens": tokens.tolist(),
        "steps_s": np.diff(ends).tolist(),
    }


def ratios(found: dict[str, Any]) -> dict[str, Any]:
    """Return the ratios of the measurements.

    Returns:
        step_over_parts: kray's step / (engine alone + learner alone); rate_over_trl: rollouts a second / TRL's, where TRL
        was measured; same_work: share of the steps in which engine alone and run made equally many tokens, so the same
        rollouts.
    """
    kray, alone = found["kray"], found["alone"]
    same = [a == b for a, b in zip(kray["tokens"], alone["tokens"], strict=True)]
    made = {
        "step_over_parts": kray["step_s"] / (alone["generate_s"] + alone["update_s"]),
        "same_work": sum(same) / len(same),
    }
    return made | ({"rate_over_trl": kray["rollouts_per_s"] / found["trl"]["rollouts_per_s"]} if "trl" in found else {})


def table(found: dict[str, Any]) -> str:
    """Format the figures."""
    kray, alone = found["kray"], found["alone"]
    split = ", ".join(f"{part} {seconds * 1e3:.0f}" for part, seconds in kray["split_s"].items())
    both = alone["generate_s"] + alone["update_s"]
    lines = [
        f"kray               {kray['rollouts_per_s']:7,.0f} rollouts/s   {kray['step_s']:.3f} s a step: {split} ms",
        f"  engine stepping  {kray['engine_busy_s']:7.3f} s   learner updating {kray['learner_busy_s']:.3f} s",
        f"engine + learner   {both:7.3f} s   generate {alone['generate_s']:.3f} (stepping {alone['engine_busy_s']:.3f}), "
        f"update {alone['update_s']:.3f} (inside {alone['learner_busy_s']:.3f})",
        f"step / parts alone {found['step_over_parts']:7.2f}   aim: at most {STEP_OVER_PARTS:g}; "
        f"the same rollouts in {found['same_work']:.0%} of the steps",
    ]
    if "trl" in found:
        trl = found["trl"]
        chosen = ", ".join(f"{name} {value}" for name, value in trl["settings"].items())
        update_s = trl["step_s"] - trl["prepare_s"]
        lines += [
            f"TRL {trl['versions']['trl']:14} {trl['rollouts_per_s']:7,.0f} rollouts/s   {trl['step_s']:.3f} s a step: "
            f"generate {trl['generate_s']:.3f}, update {update_s:.3f} ({chosen})",
            f"kray / TRL         {found['rate_over_trl']:7.2f}   aim: at least {RATE_OVER_TRL:g}",
        ]
    if max(found["elsewhere"].values()) > QUIET_CORES:
        cores = ", ".join(f"{cores:.1f} before {part}" for part, cores in found["elsewhere"].items())
        lines.append(f"note: other processes kept cores busy ({cores}), which affects the figures")
    return "\n".join(lines)


def busy_elsewhere() -> float:
    """Measure the cores that other processes keep busy, over a second in which this measurement is idle."""
    return psutil.cpu_percent(1.0) / 100 * (psutil.cpu_count() or 1)


def prompts_of(config: KrayConfig, model: str, steps: int) -> list[list[dict[str, str]]]:
    """Return text and answer of the prompts of each step, in the driver's order."""
    from kray.driver.components import load_components

    components = load_components(config, model)
    chosen = [components.offer(step).prompts for step in range(steps)]
    return [[{"prompt": prompt.text or "", "answer": prompt.answer} for prompt, _ in pairs] for pairs in chosen]


def measure(config: KrayConfig, steps: int, warm: int, trl_python: str | None, batched: bool) -> dict[str, Any]:
    """Measure kray through its driver, its engine and learner alone, and TRL; print a table.

    Args:
        config: As `step_config` returns it.
        steps: Number of steps, warm-up included.
        warm: Number of first steps that do not count.
        trl_python: A Python that has TRL, "" for the one in the cache; None leaves TRL out.
        batched: Whether TRL's continuous batching is tried, too.
    """
    import ray

    from kray.bench.step_parts import run_alone
    from kray.bench.trl_process import find_python, run_trl

    python = None if trl_python is None else find_python(trl_python)
    model = find_model(config)
    busy: dict[str, float] = {"kray": busy_elsewhere()}
    found: dict[str, Any] = {"elsewhere": busy}
    connect(config)
    found["kray"] = run_kray(config, model, warm)
    print("engine and learner alone, in turn", flush=True)
    busy["alone"] = busy_elsewhere()
    found["alone"] = run_alone(config, model, steps, warm)
    ray.shutdown()
    if python is not None:
        busy["TRL"] = busy_elsewhere()
        found["trl"] = run_trl(python, config, model, prompts_of(config, model, steps), warm, batched)
    found |= ratios(found)
    print(table(found), flush=True)
    return found
