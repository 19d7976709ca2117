"""Whole training runs at the smallest size, with real engines, learner and driver."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kray.config import load_config
from kray.driver.console import Summary
from kray.driver.remote import run_on_cluster
from kray.faults.compared import tensors

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

# The policy -> what `straight_run` returns.
_STRAIGHT: dict[Path, tuple[Summary, Path]] = {}


@pytest.fixture
def run_tiny(ray_local, warm_policy, tmp_path):
    """Run CONFIG with overrides in a folder; return the Summary, or the Evaluation for method="judge"."""
    return runner(warm_policy, tmp_path)


@pytest.fixture(scope="session")
def straight_run(ray_local, warm_policy, tmp_path_factory):
    """Run CONFIG as it is, once for all tests; return the Summary and the folder, which others only read."""
    # Each folder of tests that imports this fixture has one of its own.
    if warm_policy not in _STRAIGHT:
        folder = tmp_path_factory.mktemp("straight")
        _STRAIGHT[warm_policy] = runner(warm_policy, folder)("run"), folder / "run"
    return _STRAIGHT[warm_policy]


def runner(policy: Path, parent: Path):
    """Return what runs CONFIG in folders of `parent`."""

    def run(
        folder: str = "run",
        *overrides: str,
        checkpoint: Path | None = None,
        method: str = "run",
        policy: Path = policy,
    ):
        file = parent / "tiny.yaml"
        file.write_text(CONFIG)
        config = load_config(str(file), [f"model.path={policy}", f"run.dir={parent}", *overrides])
        return run_on_cluster(config, str(policy), parent / folder, checkpoint, method)

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

    mine, its = tensors(one), tensors(other)
    assert len(mine) > 20
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)
