"""Another run on the same ranks: nothing of the one before is left."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kray.errors import ConfigError
from kray.train.training_rows import step_rows


def test_after_configure_and_load_a_learner_is_as_new(models, make, train, some_groups, ragged, tmp_path):
    other = replace(train, lr=3 * train.lr, beta1=0.5, aggregation="prompt_mean", lr_warmup_steps=4)
    fresh = make(models[True], other)
    rows = [step_rows(some_groups(seed, ragged), other) for seed in range(2)]
    expected = [fresh.update(each) for each in rows]
    state = dict(fresh.state())

    used = make(models[True], train)
    used.save(tmp_path / "start")
    for seed in range(3):
        used.update(step_rows(some_groups(seed, ragged), train))
    used.configure(other, 10)
    used.load(tmp_path / "start")
    found = [used.update(each) for each in rows]
    clocked = ("train/update_s", "train/peak_memory_gib")
    assert [{k: v for k, v in m.items() if k not in clocked} for m in found] == [
        {k: v for k, v in m.items() if k not in clocked} for m in expected
    ]
    assert all(torch.equal(tensor, state[name]) for name, tensor in used.state())
    assert used.updates_done == fresh.updates_done == 2


def test_what_ranks_are_built_with_cannot_change(models, make, train):
    learner = make(models[True], train)
    with pytest.raises(ConfigError, match=r"train\.kl: the learner was built with 0\.0 and cannot go on with 0\.1"):
        learner.configure(replace(train, kl=0.1), 10)
