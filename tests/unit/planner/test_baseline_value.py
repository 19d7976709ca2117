"""The value under a belief baseline: its definition, its concave envelope, and exact plans with groups of one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from kray.bench.planner import exact_optimum
from kray.plan_modes import GAINS, MARGINALS, PlanConfig, smallest_group
from kray.planner import BaselineValue, BetaValue, KnapsackPlanner, solve
from kray.planner.limits import first_block
from kray.planner.marginals import make_marginal
from kray.planner.settings import checked_plan

strengths = st.one_of(st.sampled_from([1e-6, 0.5, 0.618, 1.0, 99.0, 1e9]), st.floats(-6, 9).map(lambda x: 10.0**x))
taus = st.one_of(st.sampled_from([0.0, 1.0, 2.0, 9900.0, 1e4]), st.floats(-6, 4).map(lambda x: 10.0**x))
means = st.floats(0.02, 0.98)
prompts = st.lists(st.tuples(strengths, means), min_size=1, max_size=6)

GAIN = {"paper": lambda p: p * (1 - p) ** 2, "sqrt": lambda p: np.sqrt(p) * (1 - p), "flat": lambda p: 1.0}


def make(pairs, gain="paper", tau=1.0):
    k, mean = np.array(pairs).T
    return BaselineValue(k * mean, k * (1 - mean), gain, tau)


def plain(k, tau, most):
    """n_eff / (n_eff + tau) of 0..most rollouts, as it is defined."""
    n = np.arange(1, most + 1, dtype=float)
    known = n * (k + (n - 1)) / (k + n)
    return np.concatenate([[0.0], known / (known + tau)])


def envelope(totals):
    """The least concave function above `totals` that begins where they do, by all chords."""
    most = len(totals) - 1
    out = totals.copy()
    for i in range(most):
        for j in range(i + 1, most + 1):
            inside = np.arange(i, j + 1)
            out[inside] = np.maximum(out[inside], totals[i] + (totals[j] - totals[i]) * (inside - i) / (j - i))
    return out


@given(prompts, taus, st.sampled_from(GAINS))
@settings(max_examples=200)
def test_gains_never_rise_and_add_up_to_the_total(pairs, tau, gain):
    value, m = make(pairs, gain, tau), len(pairs)
    gains = np.array([value.gain(np.full(m, n)) for n in range(160)])
    totals = np.array([value.total(np.full(m, n)) for n in range(161)])
    assert (gains >= 0).all()
    assert (gains[0] > 0).all()
    assert (np.diff(gains, axis=0) <= 0).all()
    assert (totals[0] == 0).all()
    np.testing.assert_allclose(totals[1:], np.cumsum(gains, axis=0), rtol=1e-10)


@given(strengths, st.one_of(st.sampled_from([0.0, 1.0, 50.0]), st.floats(0, 60)))
@settings(max_examples=100)
def test_the_value_is_the_concave_envelope_of_its_definition(k, tau):
    # with tau <= 60 the first block ends before 12 rollouts, so that what lies beyond 30 changes nothing
    value = make([(k, 0.4)], "flat", tau)
    found = [value.total(np.array([n]))[0] for n in range(31)]
    np.testing.assert_allclose(found, envelope(plain(k, tau, 30)), rtol=1e-9, atol=1e-15)


def test_a_belief_of_strength_one_half_opens_with_two():
    value = BaselineValue([0.25], [0.25], "flat", 1.0)
    assert np.diff(plain(0.5, 1.0, 3)) == pytest.approx([0.25, 0.295, 0.137], abs=1e-3)
    assert [value.gain(np.array([n]))[0] for n in range(3)] == pytest.approx([0.2727, 0.2727, 0.1364], abs=1e-4)


@pytest.mark.parametrize("kind", GAINS)
@pytest.mark.parametrize(("a", "b"), [(0.3, 0.7), (1, 1), (2.5, 40), (90, 300)])
def test_worth_is_the_expectation_under_the_belief(kind, a, b):
    density = stats.beta(a, b)
    want = integrate.quad(lambda u: GAIN[kind](density.ppf(u)), 0, 1, limit=400)[0]
    # without tau one rollout gives all that there is
    assert BaselineValue([a], [b], kind, 0.0).total(np.array([1]))[0] == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("kind", GAINS)
def test_a_certain_belief_has_the_gain_of_its_rate_and_counts_every_rollout(kind):
    p, n = np.array([0.05, 0.5, 0.9]), np.array([1, 4, 100])
    value = BaselineValue(p * 1e12, (1 - p) * 1e12, kind, 3.0)
    np.testing.assert_allclose(value.total(n), GAIN[kind](p) * n / (n + 3.0), rtol=1e-9)


@given(prompts, taus, st.sampled_from(GAINS), st.integers(0, 1), st.data())
@settings(max_examples=300)
def test_plans_match_the_dynamic_programme_also_where_prompts_may_be_skipped(pairs, tau, gain, least, data):
    value, m = make(pairs, gain, tau), len(pairs)
    lower = np.array(data.draw(st.lists(st.integers(least, 3), min_size=m, max_size=m)))
    upper = lower + np.array(data.draw(st.lists(st.integers(0, 9), min_size=m, max_size=m)))
    budget = data.draw(st.integers(int(lower.sum()), int(upper.sum())))
    n = solve(value, budget, lower, upper)
    assert n.sum() == budget
    assert (lower <= n).all()
    assert (n <= upper).all()
    assert value.total(n).sum() == pytest.approx(exact_optimum(value, budget, lower, upper), rel=1e-9)
    np.testing.assert_array_equal(n, solve(value, budget, lower, upper, table_limit=4))


def test_one_rollout_each_where_breadth_is_worth_most():
    value = BaselineValue(np.full(20, 2.0), np.full(20, 3.0))
    assert solve(value, 13, 0, 128).tolist() == [1] * 13 + [0] * 7


@given(prompts, st.integers(0, 60), st.data())
@settings(max_examples=150)
def test_costs_never_exceed_the_budget_and_are_within_one_rollout_of_the_optimum(pairs, budget, data):
    value, m = make(pairs), len(pairs)
    cost = np.array(data.draw(st.lists(st.integers(1, 5), min_size=m, max_size=m)))
    n = solve(value, budget, 0, 9, cost)
    assert cost @ n <= budget
    best = exact_optimum(value, budget, np.zeros(m, int), np.full(m, 9), cost)
    assert value.total(n).sum() >= best - value.gain(np.zeros(m, int)).max() - 1e-12


@given(st.floats(0.05, 60), st.floats(0.05, 60), st.lists(st.sampled_from([0, 1, 0.5, "hold"]), max_size=40), taus)
@settings(max_examples=100)
def test_the_marginal_is_the_gain_at_the_updated_belief_with_the_baseline_as_it_was(a, b, events, tau):
    marginal = make_marginal("expected_gain", BaselineValue([a], [b], "sqrt", tau), np.array([1]), 8)
    n, passed, failed = 1, 0.0, 0.0
    for event in events:
        if event == "hold":
            marginal.allocate(0, 1)
            n += 1
        else:
            marginal.observe(0, event, 1 - event)
            passed, failed = passed + event, failed + 1 - event
        value = BaselineValue([a + passed], [b + failed], "sqrt", tau, np.array([a + b]))
        assert marginal.next_gain(0) == pytest.approx(value.gain(np.array([n]))[0], rel=1e-9, abs=1e-300)
        assert marginal.value().gain(np.array([n]))[0] == pytest.approx(marginal.next_gain(0), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("mode", ["static", "online", "rounds", "uniform", "weight_only", "paper", "coba"])
def test_groups_of_one_in_every_mode(mode):
    planner = KnapsackPlanner(mode, 10, 1, 4, value="baseline", pilot=1)
    ids = [f"p{i}" for i in range(10)]
    step = planner.begin(ids)
    while not step.done:
        for prompt, rollouts in step.take(step.room()):
            step.observe(prompt, [1.0] * rollouts)
    plan = step.allocation()
    assert plan.budgets.tolist() == [1] * 10
    assert (plan.expected_value > 0).all()


@pytest.mark.parametrize("mode", ["static", "online"])
def test_a_step_may_open_prompts_with_one_rollout(mode):
    planner = KnapsackPlanner(mode, 7, 0, 8, candidates=2.0, value="baseline", tau=0.5)
    step = planner.begin([f"p{i}" for i in range(20)], due=np.arange(20) == 19)
    while not step.done:
        for prompt, rollouts in step.take(step.room()):
            step.observe(prompt, [0.0] * rollouts)
    budgets = step.allocation().budgets
    assert budgets.sum() == 7
    assert budgets.max() == 1
    assert step.metrics()["planner/admitted"] == 7


def test_first_blocks_ask_the_value():
    for value in ("paper", "grpo", "coba", "baseline"):
        plan = PlanConfig(value=value, lower=1)
        assert first_block(plan) == smallest_group(plan) == (1 if value == "baseline" else 2)
    assert BaselineValue.smallest_group == 1
    assert BetaValue.smallest_group == 2


@pytest.mark.parametrize("marginal", MARGINALS[1:])
def test_marginals_of_mixed_groups_contradict_the_baseline(marginal):
    with pytest.raises(ValueError, match=rf"plan\.marginal {marginal} .* plan\.value paper, not baseline"):
        checked_plan(PlanConfig(mode="online", value="baseline", marginal=marginal, candidates=2.0))


@pytest.mark.parametrize(
    ("key", "bad"), [("gain", "linear"), ("tau", -1.0), ("tau", float("nan")), ("tau", float("inf"))]
)
def test_bad_settings_name_their_key(key, bad):
    with pytest.raises(ValueError, match=rf"^plan\.{key}="):
        checked_plan(PlanConfig(value="baseline", **{key: bad}))
    with pytest.raises(ValueError, match=key):
        BaselineValue([1.0], [1.0], **{key: bad})
