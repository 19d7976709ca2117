"""Laws of advantages, loss and batches, each against a slow and obvious reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kray.config import check
from kray.config.schema import KrayConfig, LoraConfig, ModelConfig
from kray.config.train_schema import TrainConfig
from kray.records import Prompt, Rollout, RolloutGroup
from kray.train.advantages import EPSILON, group_advantages
from kray.train.training_rows import Averaging, make_rows, split_updates, step_rows, token_weights

REWARDS = st.lists(st.sampled_from([0.0, 1.0, 0.1, 0.3, -2.0]), max_size=7)


def group_of(name: str, rewards: list[float], rng: np.random.Generator, weight: float | None = None) -> RolloutGroup:
    rollouts = []
    for index, reward in enumerate(rewards):
        size = int(rng.integers(1, 8))
        tokens, logprobs = rng.integers(0, 32, size).astype(np.int32), -rng.random(size).astype(np.float32)
        rollouts.append(Rollout(name, index, tokens, logprobs, "stop", ((0, 0, size),), reward=reward))
    prompt = tuple(int(token) for token in rng.integers(0, 32, rng.integers(1, 6)))
    weight = float(len(rewards)) if weight is None else weight
    return RolloutGroup(Prompt(name, "", "exact", "test", text="x"), prompt, rollouts, weight)


def reference_advantages(rewards: list[float], scale: bool) -> list[float]:
    if len(set(rewards)) <= 1:
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / len(rewards))
    return [(r - mean) / (std + EPSILON) if scale else r - mean for r in rewards]


@given(st.lists(REWARDS, max_size=6), st.booleans(), st.randoms(use_true_random=False))
def test_advantages_equal_the_reference_in_any_order(groups, scale, random):
    pairs = [
        (r, 10 * g - 7, a)
        for g, rs in enumerate(groups)
        for r, a in zip(rs, reference_advantages(rs, scale), strict=True)
    ]
    random.shuffle(pairs)
    rewards, ids, expected = (torch.tensor([pair[i] for pair in pairs], dtype=torch.float64) for i in range(3))
    got = group_advantages(rewards, ids.long(), scale)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-7)
    assert ((got == 0) | (expected != 0)).all()


def test_equal_rewards_give_exactly_zero():
    assert (group_advantages(torch.full((3,), 0.1), torch.zeros(3, dtype=torch.int64), scale=True) == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=r"rewards_R\[1\]"):
        group_advantages(torch.tensor([0.0, bad]), torch.zeros(2, dtype=torch.int64), scale=False)


@given(st.lists(st.integers(), max_size=30, unique=True), st.integers(1, 8))
def test_updates_share_the_groups_evenly(groups, updates):
    split = split_updates(groups, updates)
    assert sorted(group for step in split for group in step) == sorted(groups)
    assert len(split) == min(updates, len(groups))
    assert not split or max(map(len, split)) - min(map(len, split)) <= 1


ROUNDING = 1e-6  # a reward that equals its group's mean but for rounding may or may not be taken for it
AGGREGATIONS = ("token_mean", "sequence_mean", "prompt_mean")  # their weights sum to 1


@given(st.lists(REWARDS, max_size=6), st.sampled_from(AGGREGATIONS), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_rows_are_the_rollouts_that_carry_a_gradient(rewards, aggregation, updates, seed):
    rng = np.random.default_rng(seed)
    groups = [group_of(f"p{g}", r, rng) for g, r in enumerate(rewards)]
    rows = step_rows(groups, TrainConfig(aggregation=aggregation, updates=updates))
    expected = [
        ([*group.prompt_tokens, *rollout.tokens], advantage)
        for group in groups
        for rollout, advantage in zip(group.rollouts, reference_advantages(list(group.rewards), True), strict=True)
        if abs(advantage) > ROUNDING
    ]
    bounds = np.cumsum(rows.lengths)
    got = [part.tolist() for part in np.split(rows.tokens, bounds[:-1])] if len(rows) else []
    by_tokens = sorted((t, a) for t, a in zip(got, rows.advantages.tolist(), strict=True) if abs(a) > ROUNDING)
    assert [tokens for tokens, _ in by_tokens] == sorted(tokens for tokens, _ in expected)
    np.testing.assert_allclose([a for _, a in by_tokens], [a for _, a in sorted(expected)], rtol=1e-5)
    assert rows.effective_groups == sum(group.mixed for group in groups)
    assert rows.updates == min(updates, rows.effective_groups)
    assert len(rows.logprobs) == rows.response_lengths.sum()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_token_weights_sum_to_one_and_scale_with_group_weight(aggregation):
    rng = np.random.default_rng(0)
    groups = [group_of(f"p{g}", [0.0] * n, rng) for g, n in enumerate((1, 4, 9))]
    total = lambda: [  # noqa: E731
        sum(w * len(r.tokens) for w, r in zip(weights, group.rollouts, strict=True))
        for weights, group in zip(token_weights(groups, aggregation), groups, strict=True)
    ]
    before = total()
    assert sum(before) == pytest.approx(1.0)
    if aggregation == "prompt_mean":
        assert before == pytest.approx([1 / 3] * 3)
    groups[1].weight *= 2.5
    assert total() == pytest.approx([before[0], 2.5 * before[1], before[2]])


def test_groups_without_a_gradient_count_in_the_denominator():
    rng = np.random.default_rng(0)
    mixed, solved = group_of("a", [0.0, 1.0], rng), group_of("b", [1.0, 1.0, 1.0], rng)
    rows = step_rows([mixed, solved], TrainConfig())
    assert len(rows) == 2
    assert rows.weights == pytest.approx([1 / (mixed.tokens + solved.tokens)] * 2)


def test_unusable_rollouts_are_named():
    rng = np.random.default_rng(0)
    group = group_of("gsm8k:7", [0.0, 1.0], rng)
    group.rollouts[1].reward = None
    with pytest.raises(ValueError, match="gsm8k:7, rollout 1: the reward is None"):
        step_rows([group], TrainConfig())
    group = group_of("gsm8k:8", [0.0, 1.0], rng)
    group.rollouts[0].logprobs = group.rollouts[0].logprobs[:-1]
    with pytest.raises(ValueError, match="gsm8k:8, rollout 0"):
        step_rows([group], TrainConfig())
    with pytest.raises(ValueError, match="aggregation"):
        make_rows([group_of("c", [0.0, 1.0], rng)], lambda rewards, _: rewards, Averaging("mean"))


def test_constant_aggregation_uses_one_length():
    rng = np.random.default_rng(0)
    groups = [group_of("a", [0.0, 1.0, 1.0], rng), group_of("b", [1.0], rng)]
    weights = token_weights(groups, "constant", 10)
    assert np.concatenate(weights) == pytest.approx([1 / (10 * 4)] * 4)


def test_a_loss_brings_its_papers_advantage_and_aggregation():
    rng = np.random.default_rng(0)
    groups = [group_of("a", [0.0, 1.0, 1.0], rng)]
    paper = step_rows(groups, TrainConfig(loss="dr_grpo", constant_tokens=10))
    same = step_rows(groups, TrainConfig(advantage="mean", aggregation="constant", constant_tokens=10))
    np.testing.assert_array_equal(paper.advantages, same.advantages)
    np.testing.assert_array_equal(paper.weights, same.weights)


def test_a_constant_without_a_length_is_a_config_error():
    config = KrayConfig(train=TrainConfig(loss="dr_grpo"), model=ModelConfig(path="x"))
    assert any("set train.constant_tokens" in problem for problem in check(config))
    config.train.constant_tokens = 512
    config.model.lora = LoraConfig(targets=[])
    assert any("model.lora.targets is empty" in problem for problem in check(config))
