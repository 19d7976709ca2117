"""Beliefs that serve as baseline are trusted as far as they have predicted rewards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.planner import KnapsackPlanner
from kray.planner.beliefs import Beliefs
from kray.planner.calibration import FACTORS, Calibration, _error


def step(calibration, rng, m, p, k, n, noise=0.0):
    """Add one step of prompts with beliefs of mean m and strength k, whose true success rates are p."""
    drawn = rng.random((len(p), n)) < np.asarray(p)[:, None]
    labels = np.where(rng.random(drawn.shape) < noise, ~drawn, drawn).astype(float)
    alpha, beta = k * m, k * (1 - m)
    calibration.add(alpha, beta, labels.sum(1), (labels**2).sum(1), np.full(len(p), n))


def test_without_evidence_beliefs_stay_as_they_are():
    alpha, beta = np.array([0.3, 2.0]), np.array([5.0, 1.0])
    for got, given_ in zip(Calibration().apply(alpha, beta), (alpha, beta), strict=True):
        assert got.tolist() == given_.tolist()


@pytest.mark.parametrize("n", [1, 4])
def test_right_beliefs_keep_slope_and_strength(n):
    rng, calibration = np.random.default_rng(0), Calibration()
    for _ in range(30):
        m = rng.uniform(0.05, 0.95, 200)
        step(calibration, rng, m, np.clip(rng.beta(4 * m, 4 * (1 - m)), 0, 1), 4.0, n)
    assert calibration.slope == pytest.approx(1.0, abs=0.08)
    if n > 1:
        assert 0.6 <= calibration.factor <= 1.7


@pytest.mark.parametrize("n", [1, 4])
def test_beliefs_that_predict_nothing_fall_back_to_the_mean_of_all(n):
    rng, calibration = np.random.default_rng(1), Calibration()
    for _ in range(30):
        step(calibration, rng, rng.uniform(0, 1, 200), np.full(200, 0.3), 50.0, n)
    assert calibration.slope < 0.1
    alpha, beta = calibration.apply(np.array([5.0, 45.0]), np.array([45.0, 5.0]))
    assert alpha / (alpha + beta) == pytest.approx([0.3, 0.3], abs=0.06)


def test_overconfident_beliefs_lose_strength():
    rng, calibration = np.random.default_rng(2), Calibration()
    for _ in range(30):
        m = rng.uniform(0.2, 0.8, 200)
        step(calibration, rng, m, np.clip(m + rng.normal(0, 0.25, 200), 0, 1), 400.0, 8)
    assert calibration.factor <= 0.05


@pytest.mark.parametrize("k", [1e-4, 0.3, 40.0])
def test_groups_of_one_say_nothing_about_strength(k):
    rng, calibration = np.random.default_rng(4), Calibration()
    for _ in range(10):
        step(calibration, rng, rng.uniform(0.05, 0.95, 300), rng.uniform(0, 1, 300), k, 1)
    assert calibration.factor == 1.0


def test_a_policy_that_moved_shifts_all_beliefs():
    rng, calibration = np.random.default_rng(3), Calibration()
    for _ in range(30):
        m = rng.uniform(0.2, 0.6, 200)
        step(calibration, rng, m, m + 0.2, 20.0, 1)
    alpha, beta = calibration.apply(np.array([8.0]), np.array([12.0]))
    assert alpha / (alpha + beta) == pytest.approx([0.6], abs=0.04)


@given(
    st.floats(1e-6, 50),
    st.floats(1e-6, 50),
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
)
def test_the_error_is_that_of_leave_one_out_baselines(a, b, labels):
    r = np.array(labels)
    expected = sum((x - (a + r.sum() - x) / (a + b + len(r) - 1)) ** 2 for x in labels)
    got = _error(*(np.array([x]) for x in (a, b, r.sum(), (r**2).sum(), len(r))))
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-7)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_corrected_beliefs_are_proper_and_survive_a_checkpoint(seed, n):
    rng, calibration = np.random.default_rng(seed), Calibration()
    for _ in range(3):
        step(calibration, rng, rng.uniform(0, 1, 30), rng.uniform(0, 1, 30), rng.uniform(0.1, 90), n)
    alpha, beta = rng.uniform(0.01, 99, (2, 50))
    got = calibration.apply(alpha, beta)
    assert all((x > 0).all() and np.isfinite(x).all() for x in got)
    assert calibration.factor in FACTORS
    other = Calibration()
    other.load_dict(calibration.to_dict())
    assert [x.tolist() for x in other.apply(alpha, beta)] == [x.tolist() for x in got]


def planned(planner, steps, rng, rates):
    """Plan and label steps; return the beliefs that served as baseline in the last one."""
    ids = [f"p{i}" for i in range(len(rates))]
    for _ in range(steps):
        plan = planner.begin(ids)
        while not plan.done:
            for prompt_id, n in plan.take():
                plan.observe(prompt_id, (rng.random(n) < rates[int(prompt_id[1:])]).astype(float))
    return plan.allocation().beliefs


def overconfident(calibrate=True):
    beliefs = Beliefs(discount=1.0, prior_alpha=90.0, prior_beta=10.0, fit_prior=False)
    return KnapsackPlanner("uniform", budget=80, lower=1, beliefs=beliefs, calibrate=calibrate)


def test_a_planner_with_a_bad_prior_falls_back():
    rates = np.full(40, 0.2)
    bad = planned(overconfident(False), 6, np.random.default_rng(0), rates)
    good = planned(overconfident(), 6, np.random.default_rng(0), rates)
    means = [x[:, 0] / x.sum(1) for x in (bad, good)]
    assert means[0].min() > 0.7
    assert np.abs(means[1] - 0.2).max() < 0.12


def test_a_resumed_planner_corrects_as_one_that_went_on():
    rates = np.linspace(0.1, 0.9, 40)
    whole, first = overconfident(), overconfident()
    planned(whole, 3, np.random.default_rng(0), rates)
    planned(first, 3, np.random.default_rng(0), rates)
    second = overconfident()
    second.load_dict(first.to_dict())
    expected = planned(whole, 2, np.random.default_rng(1), rates)
    assert planned(second, 2, np.random.default_rng(1), rates).tolist() == expected.tolist()


def test_a_withdrawn_step_leaves_no_trace():
    rates = np.linspace(0.1, 0.9, 40)
    planner, other = overconfident(), overconfident()
    for each in (planner, other):
        planned(each, 3, np.random.default_rng(0), rates)
    state = planner.to_dict()
    plan = planner.begin([f"p{i}" for i in range(40)])
    prompt_id, n = plan.take()[0]
    plan.observe(prompt_id, [1.0] * n)
    planner.withdraw()
    assert planner.to_dict() == state
