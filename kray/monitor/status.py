"""The status of a run from the files in its folder: state, step, rates, accuracy, remaining time.

A status is a dict that JSON can hold. kray.monitor.live adds what only a running driver knows.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kray.config import KrayConfig, kept_config, load_config
from kray.errors import KrayError
from kray.metrics import (
    BUDGET_MAX,
    BUDGET_MIN,
    BUDGET_P50,
    BUDGET_P99,
    EVAL_ACCURACY,
    GROUP_EFFECTIVE_RATIO_PROMPTS,
    GROUP_EFFECTIVE_RATIO_ROLLOUTS,
    POOL_PREEMPTIONS,
    POOL_RESTARTS,
    PROGRESS_ROLLOUTS,
    PROGRESS_TOKENS,
    REWARD_MEAN,
    STALENESS_MEAN,
    STEP_PARTS,
    THROUGHPUT_ROLLOUTS_PER_S,
    THROUGHPUT_TOKENS_PER_S,
    TIMING_S_IDLE,
    TIMING_S_STEP,
    TRAIN_EFFECTIVE_RATIO,
    timing,
)

# How a status names the figures of the newest step's budgets.
BUDGETS = {"min": BUDGET_MIN, "p50": BUDGET_P50, "p99": BUDGET_P99, "max": BUDGET_MAX}

# Steps over whose median the remaining time is estimated.
RECENT_STEPS = 50


def summary(
    folder: Path, config: KrayConfig, newest: Mapping[str, float], evaluations: Mapping[int, float]
) -> dict[str, Any]:
    """Return the status that follows from metrics alone.

    Args:
        folder: The run folder.
        config: The configuration of the run.
        newest: Every metric as it was last recorded, and `step`.
        evaluations: Step -> accuracy, of the first and the newest evaluation.
    """
    get = newest.get
    step = int(get("step", 0))
    return {
        "run": folder.name,
        "folder": str(folder),
        "mode": config.plan.mode,
        "live": False,
        "part": "",
        "step": step,
        "steps": config.run.steps,
        "left_s": (config.run.steps - step) * newest[TIMING_S_STEP] if TIMING_S_STEP in newest else None,
        "step_s": get(TIMING_S_STEP),
        "parts_s": {part: newest[timing(part)] for part in STEP_PARTS if timing(part) in newest},
        "rollouts": int(get(PROGRESS_ROLLOUTS, 0)),
        "tokens": int(get(PROGRESS_TOKENS, 0)),
        "rollouts_per_s": get(THROUGHPUT_ROLLOUTS_PER_S),
        "tokens_per_s": get(THROUGHPUT_TOKENS_PER_S),
        "reward": get(REWARD_MEAN),
        "effective": get(TRAIN_EFFECTIVE_RATIO),
        "effective_prompts": get(GROUP_EFFECTIVE_RATIO_PROMPTS),
        "effective_rollouts": get(GROUP_EFFECTIVE_RATIO_ROLLOUTS),
        "idle": newest[TIMING_S_IDLE] / newest[TIMING_S_STEP] if TIMING_S_IDLE in newest else None,
        "staleness": get(STALENESS_MEAN),
        "budget": {name: newest[metric] for name, metric in BUDGETS.items() if metric in newest},
        "budgets": [],
        "engines": [],
        "accuracies": [[at, value] for at, value in evaluations.items()],
        "restarts": int(get(POOL_RESTARTS, 0)),
        "preemptions": int(get(POOL_PREEMPTIONS, 0)),
        "saved": [path.name for path in sorted((folder / "checkpoints").glob("step-*"))][-1:],
    }


def histogram(budgets: np.ndarray) -> list[list[Any]]:
    """Count prompts by the size of their budget, in classes of 0, 1, 2, 3-4, 5-8, ... rollouts.

    Args:
        budgets: (M,) int rollouts.

    Returns:
        [label, prompts] of each class between the smallest and the largest budget.
    """
    if not len(budgets):
        return []
    bins = np.where(budgets > 0, np.ceil(np.log2(np.maximum(budgets, 1))).astype(int) + 1, 0)
    counts = np.bincount(bins)
    labels = ["0", "1", "2", *(f"{2 ** (i - 2) + 1}-{2 ** (i - 1)}" for i in range(3, len(counts)))]
    first = int(np.flatnonzero(counts)[0])
    return [[label, int(count)] for label, count in list(zip(labels, counts, strict=False))[first:]]


def from_folder(folder: Path) -> dict[str, Any]:
    """Return the status of a run from its files alone.

    Raises:
        KrayError: The folder holds no metrics.jsonl.
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise KrayError(
            f"{folder} holds no metrics.jsonl, so it is not a run folder, or the run has not recorded anything yet"
        )
    config = load_config(str(kept_config(folder)), [], checked=False)
    newest: dict[str, float] = {}
    evaluations: dict[int, float] = {}
    steps_s: deque[float] = deque(maxlen=RECENT_STEPS)
    with file.open("rb") as lines:
        for line in lines:
            # The last line may be incomplete while it is being written.
            if not line.endswith(b"\n"):
                break
            row = json.loads(line)
            newest |= row
            if TIMING_S_STEP in row:
                steps_s.append(row[TIMING_S_STEP])
            if EVAL_ACCURACY in row:
                evaluations = dict(list(evaluations.items())[:1]) | {row["step"]: row[EVAL_ACCURACY]}
    found = summary(folder, config, newest, evaluations)
    done = found["step"] >= found["steps"]
    # Another process wrote the time, perhaps before this machine's clock was set back.
    age_s = max(0.0, time.time() - newest.get("time", time.time()))
    found |= {
        "state": "finished" if done else "not running, or its driver does not answer",
        "left_s": (found["steps"] - found["step"]) * float(np.median(steps_s)) if steps_s and not done else None,
        "asked_at": time.time(),
        "since_step_s": age_s,
    }
    return found


def newest_runs(base: Path) -> list[Path]:
    """Return the run folders in `base`, the one that was written to last first.

    A run that has just begun has a driver.json and no metrics.jsonl yet.
    """
    times: dict[Path, int] = {}
    for name in ("metrics.jsonl", "driver.json"):
        for file in base.expanduser().glob(f"*/{name}"):
            # A driver.json may be removed at any time.
            with contextlib.suppress(OSError):
                times[file.parent] = max(times.get(file.parent, 0), file.stat().st_mtime_ns)
    return sorted(times, key=lambda folder: times[folder], reverse=True)
