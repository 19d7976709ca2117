"""Groups that a plan leaves out of the loss, and how much a group weighs in it."""

from __future__ import annotations

from dataclasses import replace
from math import comb, sqrt

import numpy as np
import pytest
import torch

from kray.planner import KnapsackPlanner
from kray.records import Prompt, Rollout, RolloutGroup
from kray.train.advantages import group_advantages
from kray.train.training_rows import step_rows, token_weights

AGGREGATIONS = ("token_mean", "sequence_mean", "prompt_mean", "constant")
LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")


def group_of(
    name: str, rewards: list[float], rng: np.random.Generator, weight: float, longest: int = 7
) -> RolloutGroup:
    rollouts = []
    for index, reward in enumerate(rewards):
        size = int(rng.integers(1, longest + 1))
        tokens, logprobs = rng.integers(0, 32, size).astype(np.int32), -rng.random(size).astype(np.float32)
        rollouts.append(Rollout(name, index, tokens, logprobs, "stop", ((0, 0, size),), reward=reward))
    return RolloutGroup(Prompt(name, "", "exact", "test", text="x"), (3, 1, 4), rollouts, weight)


def planned(mode: str, seed: int, **options):
    """The groups of a step with the weights of its plan."""
    rng = np.random.default_rng(seed)
    ids = [f"p{i}" for i in range(24)]
    rates = dict(zip(ids, rng.beta(0.4, 0.8, len(ids)), strict=True))
    step = KnapsackPlanner(mode, 96, **options).begin(ids)
    rewards: dict[str, list[float]] = {prompt: [] for prompt in ids}
    while not step.done:
        for prompt, rollouts in step.take(None):
            drawn = (rng.random(rollouts) < rates[prompt]).astype(float).tolist()
            step.observe(prompt, drawn)
            rewards[prompt] += drawn
    plan = step.allocation()
    weights = dict(zip(plan.prompt_ids, plan.weights.tolist(), strict=True))
    return [group_of(prompt, drawn, rng, weights[prompt]) for prompt, drawn in rewards.items() if drawn]


PLANS = {
    "dynamic_sampling": {"candidates": 3, "target_groups": 8, "lower": 2},
    "pilot_commit": {"pilot": 3},
}


@pytest.mark.parametrize("mode", PLANS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("updates", [1, 3])
def test_rows_are_those_of_the_kept_groups_alone(train, mode, aggregation, updates):
    train = replace(train, aggregation=aggregation, constant_tokens=9, updates=updates)
    groups = planned(mode, 0, **PLANS[mode])
    kept = [group for group in groups if group.weight]
    assert 0 < len(kept) < len(groups)
    ours, theirs = step_rows(groups, train), step_rows(kept, train)
    for name in ("tokens", "weights", "advantages", "update", "groups", "updates", "effective_groups", "cut_groups"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


@pytest.mark.parametrize("loss", LOSSES)
def test_dynamic_sampling_has_the_gradient_of_kept_groups(models, make, train, loss):
    train = replace(train, loss=loss, constant_tokens=9, grad_clip=0.0)
    groups = planned("dynamic_sampling", 1, **PLANS["dynamic_sampling"])
    mixed = [group for group in groups if group.mixed][:8]
    norms = []
    for given in (groups, mixed):
        learner = make(models[True], train)
        norms.append((learner.update(step_rows(given, train))["train/grad_norm"], learner.state()))
    assert norms[0][0] == norms[1][0] > 0
    for (_, ours), (_, theirs) in zip(norms[0][1], norms[1][1], strict=True):
        assert torch.equal(ours, theirs)


def test_a_step_of_equal_groups_has_no_row(train):
    rng = np.random.default_rng(0)
    groups = [group_of("a", [1.0, 1.0], rng, 0.0), group_of("b", [0.0, 0.0], rng, 0.0)]
    for aggregation in AGGREGATIONS:
        assert len(step_rows(groups, replace(train, aggregation=aggregation, constant_tokens=9))) == 0


def expected_weight(n: int, p: float, scale: bool) -> float:
    """Of a group of n under prompt_mean: E[f(k / n)], k ~ Binomial(n, p)."""
    shares = np.arange(n + 1) / n
    chances = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    return float(np.dot(chances, np.sqrt(shares * (1 - shares)) if scale else shares * (1 - shares)))


def measured_weight(n: int, p: float, scale: bool, aggregation: str) -> float:
    """The loss weights and advantages of many groups: half the gap that a step opens between successes and failures.

    With scores that are +1 - p for a success and -p for a failure, as any score has in expectation up to a factor.
    """
    rng = np.random.default_rng(0)
    groups = [group_of(str(g), (rng.random(n) < p).astype(float).tolist(), rng, float(n), 1) for g in range(4000)]
    rewards = np.concatenate([group.rewards for group in groups])
    of = torch.arange(len(groups)).repeat_interleave(n)
    weights = np.concatenate(token_weights(groups, aggregation))
    return float((weights * group_advantages(torch.from_numpy(rewards), of, scale).numpy() * (rewards - p)).sum())


@pytest.mark.parametrize(("n", "std", "mean"), [(2, 0.25, 0.125), (8, 0.4639, 0.2188), (32, 0.4920, 0.2422)])
def test_prompt_mean_still_weighs_a_larger_group_more(n, std, mean):
    assert expected_weight(n, 0.5, True) == pytest.approx(std, abs=5e-5)
    assert expected_weight(n, 0.5, False) == pytest.approx(mean, abs=5e-5)
    assert measured_weight(n, 0.5, True, "prompt_mean") == pytest.approx(std, abs=0.01)
    assert measured_weight(n, 0.5, False, "prompt_mean") == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9])
def test_the_weight_under_prompt_mean_rises_with_the_group(p):
    for scale, limit in ((True, sqrt(p * (1 - p))), (False, p * (1 - p))):
        found = [expected_weight(n, p, scale) for n in (2, 4, 8, 32, 128)]
        assert found == sorted(found)
        assert found[-1] < limit
    assert expected_weight(8, p, False) == pytest.approx(p * (1 - p) * 7 / 8)
    assert expected_weight(2, p, True) == pytest.approx(p * (1 - p))
