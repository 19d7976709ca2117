"""A learner goes on from a checkpoint under any other settings of `train`."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from kray.config.train_schema import TrainConfig
from kray.train.training_rows import step_rows

CHANGES = {
    "lr": 1e-3,
    "lr_warmup_steps": 7,
    "lr_schedule": "cosine",
    "lr_final": 0.5,
    "baseline": "belief",
    "advantage_floor": 0.3,
    "epochs": 3,
    "max_kl": 0.5,
    "thin": 0.5,
    "weight_decay": 0.0,
    "beta1": 0.5,
    "beta2": 0.9,
    "eps": 1e-8,
    "moments": "bfloat16",
    "grad_clip": 0.0,
    "loss": "gspo",
    "clip_low": 0.1,
    "clip_high": 0.4,
    "advantage": "mean",
    "aggregation": "prompt_mean",
    "constant_tokens": 12,
    "advantage_clip": 1.0,
    "tis": 2.0,
    "kl": 0.1,
    "lr_scaling": "sqrt",
    "updates": 2,
    "microbatch_tokens": 200,
    "packing": False,
    "reduce_each_microbatch": True,
    "activation_checkpointing": True,
    "offload": "optimizer",
    "timeout_s": 90.0,
}
ELSEWHERE = {
    "ranks": "test_learner_ranks.py",
    "replicas": "test_learner_ranks.py",
    "context_parallel": "test_context_parallel.py",
    "activation_offload": "test_activations.py",
    "gpus_per_rank": "needs a GPU",
    "compile": "takes a compiler minutes",
    "cpus_per_rank": "of the actors, not of the learner",
    "threads_per_rank": "of the actors, not of the learner",
    "max_nonfinite": "of the group of ranks",
    "max_restarts": "of the run",
}


def test_every_key_of_train_is_tried():
    assert {field.name for field in fields(TrainConfig)} == CHANGES.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("key", CHANGES)
def test_a_learner_goes_on_with_another(models, make, train, some_groups, ragged, tmp_path, key):
    first = make(models[True], train)
    first.update(step_rows(some_groups(0, ragged), train))
    first.save(tmp_path / "learner")
    first.shutdown()
    other = replace(train, **{key: CHANGES[key]})
    second = make(models[True], other)
    second.load(tmp_path / "learner")
    assert second.updates_done == 1
    metrics = second.update(step_rows(some_groups(1, ragged), other))
    assert np.isfinite(metrics["train/loss"])
    assert metrics["train/optimizer_steps"] == other.updates * other.epochs
