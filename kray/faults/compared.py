"""Whether two runs ended with the same: metrics, beliefs and weights, bit for bit."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from kray.metrics import TRAIN_PEAK_MEMORY_GIB, TRAIN_UPDATE_S
from kray.train.checkpoints import newest_checkpoint, read_state

# Groups of metrics, and single ones, that depend on the clock, the machine, or on what happened to the run.
GROUPS = frozenset(("time", "timing_s", "memory", "throughput", "pool", "checkpoint", "driver", "learner"))
SINGLE = frozenset((TRAIN_UPDATE_S, TRAIN_PEAK_MEMORY_GIB))
# What a checkpoint's state holds of the planner and the lengths of responses.
LEARNED = ("step", "planner", "lengths", "calibration", "rollouts", "tokens", "accuracy_before")


def differences(one: Path, other: Path) -> list[str]:
    """Return in what two run folders differ, [] where they are equal bit for bit."""
    found = []
    rows = [metrics(folder) for folder in (one, other)]
    if len(rows[0]) != len(rows[1]):
        found.append(f"metrics.jsonl holds {len(rows[1])} steps, not {len(rows[0])}")
    for mine, its in zip(*rows, strict=False):
        if names := sorted(name for name in mine | its if mine.get(name) != its.get(name)):
            found.append(f"step {mine['step']} differs in {', '.join(names[:3])}")
            break
    ends = [newest_checkpoint(folder) for folder in (one, other)]
    if ends[0] is None or ends[1] is None:
        return [*found, f"there is no checkpoint in {one if ends[0] is None else other}"]
    states = [read_state(end) for end in ends if end]
    found += [f"the last checkpoint differs in {key}" for key in LEARNED if states[0].get(key) != states[1].get(key)]
    weights = [tensors(end) for end in ends if end]
    differ = [name for name in weights[0] | weights[1] if not _equal(weights[0].get(name), weights[1].get(name))]
    return found + ([f"the last checkpoint differs in {len(differ)} tensors, such as {differ[0]}"] if differ else [])


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without what depends on circumstances."""
    return repeatable_lines(folder / "metrics.jsonl")


def repeatable_lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of metrics without those of GROUPS and SINGLE: what a repeated run has, too."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in line.items() if not is_circumstance(name)} for line in lines]


def is_circumstance(name: str) -> bool:
    """Return whether a metric depends on the clock, the machine, or on what happened to the run."""
    return name in SINGLE or name.partition("/")[0] in GROUPS


def tensors(checkpoint: Path) -> dict[str, Any]:
    """Return all tensors of a checkpoint's learner, by name."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory() as folder:
        flat = Path(folder) / "flat.pt"
        dcp_to_torch_save(checkpoint / "learner", flat)
        state = torch.load(flat, weights_only=False)
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _equal(one: Any, other: Any) -> bool:
    import torch

    return one is not None and other is not None and torch.equal(one, other)
