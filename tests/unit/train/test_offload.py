"""Where a rank's state is kept changes nothing that it computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kray.config.schema import LoraConfig
from kray.train import offload
from kray.train.colocated_learner import ColocatedLearner
from kray.train.learner import Learner
from kray.train.offload import DeviceState, local, step_in_parts
from kray.train.training_rows import step_rows

VARIANTS = {
    "float32": {},
    "bfloat16, start model": {"dtype": "bfloat16", "kl": 0.1},
    "lora": {"lora": LoraConfig(rank=2)},
}


@pytest.fixture
def learn(models, train, some_groups, ragged, probe, tmp_path):
    """learn(offload, **options): weights, moments, metrics and log-probabilities after three updates."""

    def run(
        kind=Learner, away: bool = False, offload: str = "none", kl: float = 0.0, dtype: str = "float32", lora=None
    ):
        chosen = replace(train, offload=offload, kl=kl, updates=2, epochs=2)
        learner = kind(0, 1, "", 0, models[True], chosen, dtype, 10, 0, lora=lora)
        try:
            metrics = []
            for seed in range(3):
                if away:
                    learner.leave_device()
                    learner.leave_device()
                    if seed == 1:
                        learner.save(tmp_path / "away")
                        learner.load(tmp_path / "away")
                    learner.enter_device()
                metrics.append(learner.update(step_rows(some_groups(seed, ragged), chosen)))
            found = {name: local(tensor).clone() for name, tensor in learner._sharded_state().items()}
            weights = dict(learner.state())
            return found, weights, metrics, learner.logprobs(probe)
        finally:
            learner.shutdown()

    return run


def same(one, other) -> bool:
    """Return whether two results are equal, bit for bit, but for times."""
    tensors = [(a[name], b[name]) for a, b in zip(one[:2], other[:2], strict=True) for name in a]
    timed = ("train/update_s", "train/peak_memory_gib")
    metrics = [[{k: v for k, v in step.items() if k not in timed} for step in each[2]] for each in (one, other)]
    return (
        all(torch.equal(a, b) for a, b in tensors)
        and metrics[0] == metrics[1]
        and all(np.array_equal(a, b) for a, b in zip(one[3], other[3], strict=True))
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_updates_are_the_same_wherever_the_state_is_kept(learn, monkeypatch, variant):
    monkeypatch.setattr(offload, "OFFLOAD_PART_BYTES", 4096)
    options = VARIANTS[variant]
    kept = learn(**options)
    assert same(kept, learn(ColocatedLearner, True, **options))
    assert same(kept, learn(ColocatedLearner, True, "optimizer", **options))
    assert same(kept, learn(offload="all", **options))


def test_state_that_is_away_holds_no_memory_and_is_saved_and_loaded_there(
    models, make, train, some_groups, ragged, tmp_path
):
    learner = ColocatedLearner(0, 1, "", 0, models[True], train, "float32", 10, 0)
    try:
        learner.update(step_rows(some_groups(0, ragged), train))
        before = {name: local(tensor).clone() for name, tensor in learner._sharded_state().items()}
        parameter, size = next(learner.model.parameters()), sum(p.numel() for p in learner.model.parameters())
        learner.save(tmp_path / "before")
        assert learner.leave_device() == 3 * 4 * size
        assert local(parameter).untyped_storage().nbytes() == 0
        away = learner._sharded_state()
        assert all(torch.equal(local(tensor), before[name]) for name, tensor in away.items())
        learner.enter_device()
        learner.update(step_rows(some_groups(1, ragged), train))
        learner.leave_device()
        learner.load(tmp_path / "before")
        learner.enter_device()
        after = learner._sharded_state()
        assert all(torch.equal(local(tensor), before[name]) for name, tensor in after.items())
    finally:
        learner.shutdown()


def test_views_of_what_left_see_the_new_values_when_it_is_back():
    whole = torch.arange(64.0)
    part, short = whole[8:24], torch.zeros(2)
    state = DeviceState([whole, part, short], whole.device)
    assert state.nbytes == 256
    state.leave()
    stored = state.stored({"part": part, "short": short})
    assert stored["short"] is short
    stored["part"].mul_(2)
    state.enter()
    assert torch.equal(part, 2 * torch.arange(8.0, 24.0))
    assert torch.equal(whole[:8], torch.arange(8.0))


def test_moments_come_to_the_device_a_part_at_a_time():
    shards = [nn.Parameter(torch.randn(size)) for size in (3, 50, 7, 1, 20)]
    adamw = torch.optim.AdamW(shards, lr=0.1, fused=True)
    for shard in shards:
        adamw.state[shard] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(shard),
            "exp_avg_sq": torch.zeros_like(shard),
        }
    homes = {shard: adamw.state[shard]["exp_avg"] for shard in shards}
    steps, taken = [], adamw.step
    adamw.step = lambda: (steps.append([s.numel() for s in shards if s.grad is not None]), taken())
    for shard in shards[:4]:
        shard.grad = torch.ones_like(shard)
    step_in_parts(adamw, adamw.step, 2 * 4 * 10)
    # A parameter without a gradient is not touched; a large one is a part of its own.
    assert steps == [[3], [50], [7, 1]]
    assert all(adamw.state[shard]["exp_avg"] is homes[shard] for shard in shards)
    assert [bool(home.any()) for home in homes.values()] == [True, True, True, True, False]
    assert all(shard.grad is not None for shard in shards[:4])


def test_state_enters_a_device_when_a_killed_process_has_given_its_memory_back():
    left = iter((10, 60, 99, 100, 200))
    offload.wait_for_memory(100, lambda: next(left), limit_s=60.0)
    assert next(left) == 200


def test_state_that_finds_no_memory_is_not_waited_for_without_end():
    asked = []
    offload.wait_for_memory(100, lambda: asked.append(1) or 99, limit_s=0.25)
    assert len(asked) >= 2
