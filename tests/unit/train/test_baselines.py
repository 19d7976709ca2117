"""Advantages over beliefs and over the step's mean: the formula, what it guarantees, and what it falls back to."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kray.config.train_schema import TrainConfig
from kray.records import Prompt, Rollout, RolloutGroup
from kray.train.advantages import batch_advantages, belief_advantages
from kray.train.training_rows import step_rows

REWARDS = st.lists(st.sampled_from([0.0, 1.0, 0.25, 0.8]), min_size=1, max_size=6)
BELIEF = st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))


def one_group(rewards: list[float], belief: tuple[float, float], scale: bool, floor: float = 0.1) -> list[float]:
    group = torch.zeros(len(rewards), dtype=torch.int64)
    beliefs = torch.tensor([belief], dtype=torch.float64)
    return belief_advantages(torch.tensor(rewards, dtype=torch.float64), group, beliefs, scale, floor).tolist()


@given(st.lists(st.tuples(REWARDS, BELIEF), min_size=1, max_size=4), st.booleans(), st.floats(0, 0.5))
def test_each_baseline_is_the_posterior_mean_without_the_own_reward(groups, scale, floor):
    rewards = torch.tensor([r for rs, _ in groups for r in rs], dtype=torch.float64)
    group = torch.tensor([g for g, (rs, _) in enumerate(groups) for _ in rs])
    beliefs = torch.tensor([belief for _, belief in groups], dtype=torch.float64)
    expected = []
    for rs, (a, b) in groups:
        m = (a + math.fsum(rs)) / (a + b + len(rs))
        deviation = max(math.sqrt(m * (1 - m)), floor) if scale else 1.0
        for j, r in enumerate(rs):
            others = rs[:j] + rs[j + 1 :]
            expected.append((r - (a + math.fsum(others)) / (a + b + len(others))) / deviation)
    got = belief_advantages(rewards, group, beliefs, scale, floor)
    assert got.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_gradient_has_no_bias(n):
    """Over all outcomes of n rollouts the mean of (r - b) (r - p) is the variance pq, however wrong the belief is."""
    p = 0.3
    total = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=n):
        probability = math.prod(p if r else 1 - p for r in outcome)
        found = one_group(list(outcome), (9.0, 0.5), scale=False)
        # (r - p) is the score function of a Bernoulli policy, times pq
        total += probability * sum(a * (r - p) for a, r in zip(found, outcome, strict=True)) / n
    assert total == pytest.approx(p * (1 - p), rel=1e-6)


def test_without_a_belief_it_is_leave_one_out():
    assert one_group([1.0, 0.0, 0.0], (0.0, 0.0), scale=False) == pytest.approx([1.0, -0.5, -0.5])
    assert one_group([1.0], (0.0, 0.0), scale=True) == [0.0]


def test_a_single_rollout_and_equal_rewards_carry_a_gradient():
    assert one_group([1.0], (1.0, 3.0), scale=False) == pytest.approx([0.75])
    assert one_group([0.0, 0.0], (1.0, 3.0), scale=False) == pytest.approx([-0.2, -0.2])


@given(BELIEF, REWARDS)
def test_the_floor_bounds_advantages(belief, rewards):
    assert max(map(abs, one_group(rewards, belief, scale=True, floor=0.1))) <= 10 + 1e-4


def test_rewards_outside_of_0_to_1_are_cut_as_beliefs_count_them():
    assert one_group([3.0, -1.0], (1.0, 1.0), False) == one_group([1.0, 0.0], (1.0, 1.0), False)


@given(st.lists(st.sampled_from([0.0, 1.0, 0.4]), min_size=1, max_size=8), st.booleans())
def test_the_batch_baseline_is_the_mean_of_all(rewards, scale):
    got = batch_advantages(torch.tensor(rewards, dtype=torch.float64), scale, 0.1).numpy()
    if len(set(rewards)) == 1:
        assert (got == 0).all()
    else:
        expected = (np.array(rewards) - np.mean(rewards)) / (max(np.std(rewards), 0.1) if scale else 1)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def group_of(name: str, rewards: list[float], belief: tuple[float, float], weight: float = 1.0) -> RolloutGroup:
    rollouts = [
        Rollout(name, i, np.array([4, 5], np.int32), np.zeros(2, np.float32), "stop", ((0, 0, 2),), reward=reward)
        for i, reward in enumerate(rewards)
    ]
    return RolloutGroup(Prompt(name, "", "exact", "test", text="x"), (1, 2), rollouts, weight, belief)


def test_rows_take_the_belief_of_their_own_group():
    groups = [
        group_of("a", [1.0], (3.0, 1.0)),
        group_of("left out", [0.0], (9.0, 9.0), 0.0),
        group_of("b", [0.0], (1.0, 1.0)),
    ]
    rows = step_rows(groups, TrainConfig(baseline="belief", advantage="mean"))
    assert rows.advantages.tolist() == pytest.approx([0.25, -0.5])
    assert rows.effective_groups == rows.groups == 2
    assert rows.advantage_mean == pytest.approx(0.375)
    assert rows.effective_size == pytest.approx(0.75**2 / (0.0625 + 0.25))


def test_the_batch_baseline_needs_no_groups():
    rows = step_rows([group_of("a", [1.0], (0, 0)), group_of("b", [0.0], (0, 0))], TrainConfig(baseline="batch"))
    assert rows.advantages.tolist() == pytest.approx([1.0, -1.0])


@pytest.mark.parametrize("advantage", ["mean", "std"])
def test_rollouts_whose_rewards_were_expected_are_not_effective(advantage):
    """Where all of a step fail as they were believed to, (sum |A|)^2 / sum A^2 is the number of all rollouts."""
    expected, surprising, unknown = (0.2, 39.8), (39.8, 0.2), (20.0, 20.0)
    shares = {}
    for belief in (expected, surprising, unknown):
        groups = [group_of(str(i), [0.0] * 4, belief) for i in range(8)]
        rows = step_rows(groups, TrainConfig(baseline="belief", advantage=advantage))
        assert rows.effective_size == pytest.approx(32, rel=1e-3)
        shares[belief] = rows.effective_share
    assert shares[expected] < 0.01
    assert shares[surprising] == 1.0
    assert shares[unknown] == pytest.approx(1.0, abs=0.2)


@given(st.integers(1, 12), st.integers(1, 12))
def test_the_effective_share_of_a_group_is_that_of_its_success_rate(successes, failures):
    p = successes / (successes + failures)
    one = group_of("a", [1.0] * successes + [0.0] * failures, (0.0, 0.0))
    got = step_rows([one], TrainConfig(baseline="group", advantage="mean")).effective_share
    assert got == pytest.approx(sum(q * min(1, 4 * (1 - q) ** 2) for q in (p, 1 - p)), rel=1e-5)
    equal = group_of("b", [1.0] * (successes + failures), (0.0, 0.0))
    half = step_rows([one, equal], TrainConfig(baseline="group", advantage="mean")).effective_share
    assert half == pytest.approx(got / 2, rel=1e-5)
    assert step_rows([equal], TrainConfig(baseline="group")).effective_share == 0.0
