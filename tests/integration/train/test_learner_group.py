"""Learner ranks as Ray actors: their weights, and errors of ranks that fail."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from kray.config.train_schema import TrainConfig
from kray.errors import ConfigError, KrayError
from kray.records import Prompt, Rollout, RolloutGroup
from kray.train.learner_group import LearnerGroup

TRAIN = TrainConfig(ranks=2, lr=1e-2, timeout_s=120)


def mixed_groups() -> list[RolloutGroup]:
    rng = np.random.default_rng(0)
    groups = []
    for g in range(3):
        rollouts = [
            Rollout(
                f"p{g}", i, rng.integers(0, 40, 5), np.full(5, -3.0, np.float32), "stop", ((0, 0, 5),), reward=i % 2
            )
            for i in range(4)
        ]
        groups.append(RolloutGroup(Prompt(f"p{g}", "", "exact", "test", text="x"), (3, 4, 5), rollouts, 4.0))
    return groups


@pytest.mark.smoke
@pytest.mark.parametrize("together", [1, 2], ids=["alone", "together"])
def test_two_ranks_update_and_a_dead_rank_is_named(ray_local, tied_policy, together, tmp_path):
    async def train_and_lose_a_rank():
        train = replace(TRAIN, context_parallel=together)
        group = LearnerGroup(train, "float32", str(tied_policy), 10, 0)
        try:
            ranks = await group.start()
            assert [rank["rank"] for rank in ranks] == [0, 1]
            before = ray_local.get(await group.weights())
            metrics = await group.update(mixed_groups())
            assert metrics["train/optimizer_steps"] == 1
            assert all(math.isfinite(value) for value in metrics.values())
            gathered, weights = await group.gather_weights()
            after = ray_local.get(weights)
            assert [entry[:3] for entry in after.manifest] == [entry[:3] for entry in before.manifest]
            assert gathered.checksum == after.checksum != before.checksum
            (logprobs,) = await group.logprobs([((3, 4), (5, 6))])
            await group.save(tmp_path / "learner")
            await group.save(tmp_path / "background", wait=False)
            _, metrics = await asyncio.gather(group.saved(), group.update(mixed_groups()))
            assert metrics["train/optimizer_steps"] == 1
            await group.load(tmp_path / "background")
            await group.export(tmp_path / "export")
            await group.load(tmp_path / "learner")
            with pytest.raises(KrayError, match=r"failed to load .*nowhere"):
                await group.load(tmp_path / "nowhere")
            ray_local.kill(group.actors[1])
            with pytest.raises(KrayError, match="rank 1 died when asked to update"):
                await group.update(mixed_groups())
            return after, logprobs
        finally:
            group.close()

    weights, logprobs = asyncio.run(train_and_lose_a_rank())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    named = dict(model.named_parameters())
    assert all(torch.equal(tensor, named[name]) for name, tensor in weights.tensors())
    exact = model(torch.tensor([[3, 4, 5, 6]])).logits.log_softmax(-1)
    np.testing.assert_allclose(logprobs, [exact[0, 1, 5].item(), exact[0, 2, 6].item()], atol=1e-5)


def test_what_cannot_start_says_why_and_leaves_nothing(ray_local, tied_policy, tmp_path):
    async def start_twice():
        huge = LearnerGroup(
            TrainConfig(cpus_per_rank=1000), "float32", str(tied_policy), 10, 0, placement_timeout_s=1.0
        )
        with pytest.raises(KrayError, match=r"1 ranks not placed after 1 s; waiting for \{CPU: 1000\} x 1"):
            await huge.start()
        lost = LearnerGroup(TrainConfig(), "float32", str(tmp_path / "nowhere"), 10, 0)
        with pytest.raises(ConfigError, match=r"model\.path .*nowhere"):
            await lost.start()
        with pytest.raises(KrayError, match="not running"):
            await lost.update([])

    asyncio.run(start_twice())
