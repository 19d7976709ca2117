"""Whole training runs at the smallest size, with real engines, learner and driver."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kray.config import load_config
from kray.driver.remote import run_on_cluster

CONFIG = """
run: {name: tiny, steps: 4, checkpoint_every: 2, keep_checkpoints: 4}
prompts:
  per_step: 8
  max_tokens: 24
  train: {kind: arithmetic, size: 16}
  test: {kind: arithmetic, split: test, size: 12}
plan: {budget: 48, upper: 16}
rollout: {max_response_tokens: 6, max_sequences: 32, kv_cache_gib: 0.05, start_timeout_s: 180}
reward: {verifier: "sample_verifiers:first_is_even"}
train: {lr: 1.0e-3}
evaluate: {every: 2, samples: 2}
track: {every: 2, samples: 4, system_metrics: false}
"""


@pytest.fixture
def run_tiny(ray_local, warm_policy, tmp_path):
    """Run CONFIG with overrides in a folder; return the Summary, or the Evaluation for method="judge"."""

    def run(
        folder: str = "run",
        *overrides: str,
        checkpoint: Path | None = None,
        method: str = "run",
        policy: Path = warm_policy,
    ):
        file = tmp_path / "tiny.yaml"
        file.write_text(CONFIG)
        config = load_config(str(file), [f"model.path={policy}", f"run.dir={tmp_path}", *overrides])
        return run_on_cluster(config, str(policy), tmp_path / folder, checkpoint, method)

    return run


def wait_for_line(file: Path, number: int, limit_s: float = 120.0) -> None:
    """Wait until the file has that many lines."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if file.exists() and len(file.read_text().splitlines()) >= number:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{file} did not get {number} lines")


def same_weights(one: Path, other: Path) -> bool:
    """Return whether two checkpoints hold the same learner, bit for bit."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    states = []
    for checkpoint in (one, other):
        flat = checkpoint / "flat.pt"
        dcp_to_torch_save(checkpoint / "learner", flat)
        states.append(torch.load(flat, weights_only=False))
    tensors = [{name: value for name, value in state.items() if isinstance(value, torch.Tensor)} for state in states]
    assert len(tensors[0]) > 20
    return tensors[0].keys() == tensors[1].keys() and all(
        torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0]
    )
