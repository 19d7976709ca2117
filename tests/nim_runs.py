"""Whole runs of self-play at the smallest size: a tiny policy that has seen a few games of Nim plays both sides."""

from __future__ import annotations

import pytest
from conftest import make_warm

from kray.config import load_config
from kray.driver.remote import run_on_cluster

NIM = "{three: {heaps: 3, largest: 4}}"
SMALL = [
    "model.tiny=null",
    "run.steps=2",
    "run.checkpoint_every=1",
    "run.keep_checkpoints=4",
    "prompts.per_step=8",
    f"prompts.train.tasks={NIM}",
    f"prompts.test.tasks={NIM}",
    "prompts.test.limit=6",
    "plan.budget=24",
    "plan.candidates=1",
    "plan.upper=8",
    "environment.max_turns=8",
    "environment.evaluate_against={random: {opponent: random}, past: {opponent: past, every: 1}}",
    "rollout.max_response_tokens=60",
    "rollout.max_sequences=32",
    "rollout.kv_cache_gib=0.05",
    "train.lr=1e-3",
    "train.lr_warmup_steps=0",  # it depends on run.steps, which a resume changes
    "train.epochs=1",
    "train.thin=1.0",
    "evaluate.every=0",
    "evaluate.samples=2",
    "evaluate.greedy=false",
    "track.every=1",
    "track.system_metrics=false",
]


@pytest.fixture(scope="module")
def nim_policy(tmp_path_factory):
    """Return a tiny policy that has learned the rules."""
    return make_warm(tmp_path_factory.mktemp("cache"), nim={"three": {"heaps": 3, "largest": 4}}, warmup_steps=150)


@pytest.fixture
def run_nim(ray_local, nim_policy, tmp_path):
    """Run configs/nim.yaml with SMALL and overrides in a folder; return the Summary, or the Evaluation for method="judge"."""

    def run(folder, *overrides, checkpoint=None, method="run"):
        paths = [f"model.path={nim_policy}", f"run.dir={tmp_path}"]
        config = load_config("configs/nim.yaml", [*SMALL, *paths, *overrides])
        return run_on_cluster(config, str(nim_policy), tmp_path / folder, checkpoint, method)

    return run
