"""The prior from features is used only where it predicts better."""

import json

import numpy as np
import pytest

from kray.planner import KnapsackPlanner
from kray.planner.features import LEAST_PROMPTS, FeaturePrior


def population(rng, prompts, helpful):
    x = rng.normal(size=(prompts, 4))
    m = 1 / (1 + np.exp(-(2.0 * x[:, 0] - 1.5 * x[:, 2]) * helpful))
    p = rng.beta(3 * m + 1e-3, 3 * (1 - m) + 1e-3)
    return x, p, rng.binomial(8, p).astype(float)


def test_features_that_predict_are_used_and_recover_the_rates():
    rng = np.random.default_rng(0)
    x, _, s = population(rng, 800, 1.0)
    prior = FeaturePrior()
    prior.remember(np.arange(800), x)
    assert prior.refit(s, np.full(800, 8.0))
    assert prior.gain > 0.1
    fresh, p, _ = population(rng, 2000, 1.0)
    a, b = prior.shape(fresh)
    assert np.corrcoef(a / (a + b), p)[0, 1] > 0.6
    assert float((a + b).mean()) == pytest.approx(3, rel=0.4)


@pytest.mark.parametrize("seed", range(6))
def test_noise_features_are_not_used(seed):
    rng = np.random.default_rng(seed)
    x, _, s = population(rng, 600, 0.0)
    prior = FeaturePrior()
    prior.remember(np.arange(600), x)
    assert not prior.refit(s, np.full(600, 8.0))


def test_too_few_labels_and_bad_features():
    prior = FeaturePrior()
    prior.remember(np.arange(LEAST_PROMPTS), np.zeros((LEAST_PROMPTS, 2)))
    assert not prior.refit(np.zeros(LEAST_PROMPTS), np.zeros(LEAST_PROMPTS))
    for bad in (np.zeros((3, 3)), np.full((2, 2), np.nan), np.zeros(2)):
        with pytest.raises(ValueError, match="features"):
            prior.remember(np.arange(2), bad)


def test_the_planner_uses_features_for_unseen_prompts():
    rng = np.random.default_rng(1)
    x, p, _ = population(rng, 400, 1.0)
    planner = KnapsackPlanner("static", 1600, prior_features=True)
    ids = [f"p{i}" for i in range(400)]
    for _ in range(2):
        step = planner.begin(ids[:200], features=x[:200])
        for prompt, rollouts in step.take(None):
            step.observe(prompt, (rng.random(rollouts) < p[int(prompt[1:])]).astype(float).tolist())
    plan = planner.plan(ids[200:], features=x[200:])
    assert planner.features.active
    assert np.corrcoef(plan.expected_success, p[200:])[0, 1] > 0.5
    assert KnapsackPlanner("static").features is None


def test_a_saved_feature_prior_continues_exactly():
    rng = np.random.default_rng(0)
    x, _, s = population(rng, 300, 1.0)
    one, other = FeaturePrior(), FeaturePrior()
    one.remember(np.arange(300)[::-1], x)
    other.load_dict(json.loads(json.dumps(one.to_dict())))
    assert other.rows().tolist() == one.rows().tolist()
    assert one.refit(s, np.full(300, 8.0))
    other.refit(s, np.full(300, 8.0))
    third = FeaturePrior()
    third.load_dict(json.loads(json.dumps(other.to_dict())))
    for found in (other, third):
        assert all((a == b).all() for a, b in zip(found.shape(x), one.shape(x), strict=True))
        assert found.gain == one.gain
    for state in ({}, one.to_dict() | {"width": 3}):
        with pytest.raises(ValueError, match=r"version|damaged"):
            third.load_dict(state)


def test_a_withdrawn_step_leaves_no_trace():
    rng = np.random.default_rng(1)
    x, p, _ = population(rng, 300, 1.0)
    planner = KnapsackPlanner("static", 1600, prior_features=True)
    ids = [f"p{i}" for i in range(300)]
    for _ in range(2):
        step = planner.begin(ids[:200], features=x[:200])
        for prompt, rollouts in step.take(None):
            step.observe(prompt, (rng.random(rollouts) < p[int(prompt[1:])]).astype(float).tolist())
    before = json.dumps(planner.to_dict()["features"])
    planner.begin(ids[100:], features=x[100:])
    assert json.dumps(planner.to_dict()["features"]) != before
    planner.withdraw()
    assert json.dumps(planner.to_dict()["features"]) == before
