"""The solver matches an exact dynamic programme, sorting and searching agree, and bad arguments are named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.bench.planner import exact_optimum
from kray.planner import BetaValue, PointValue, solve

rates = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 0.25, 1e-9]), st.floats(0, 1))
shapes = st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.0, 8.5, 70.0, 5e3])


@st.composite
def values(draw, most=7):
    if draw(st.booleans()):
        return PointValue(draw(st.lists(rates, min_size=1, max_size=most)))
    pairs = draw(st.lists(st.tuples(shapes, shapes), min_size=1, max_size=most))
    return BetaValue([a for a, _ in pairs], [b for _, b in pairs])


@st.composite
def problems(draw, lowest=1, most=7):
    """(value, budget, lower (M,), upper (M,)), feasible."""
    value = draw(values(most))
    m = len(value)
    lower = np.array(draw(st.lists(st.integers(lowest, 4), min_size=m, max_size=m)))
    upper = lower + np.array(draw(st.lists(st.integers(0, 9), min_size=m, max_size=m)))
    return value, draw(st.integers(int(lower.sum()), int(upper.sum()))), lower, upper


def table(value, upper):
    """Totals of 0..max(upper) rollouts, (M, max(upper) + 1)."""
    m = len(value)
    return np.array([value.total(np.full(m, n)) for n in range(int(np.max(upper)) + 1)]).T


@given(problems())
@settings(max_examples=300)
def test_solve_matches_the_dynamic_programme(problem):
    value, budget, lower, upper = problem
    n = solve(value, budget, lower, upper)
    assert n.dtype == np.int64
    assert n.sum() == budget
    assert (lower <= n).all()
    assert (n <= upper).all()
    assert value.total(n).sum() == pytest.approx(exact_optimum(value, budget, lower, upper), rel=1e-11, abs=1e-16)


@given(problems(lowest=0))
@settings(max_examples=300)
def test_skipping_prompts_is_within_one_block(problem):
    value, budget, lower, upper = problem
    n = solve(value, budget, lower, upper)
    assert n.sum() == budget
    assert (lower <= n).all()
    assert (n <= upper).all()
    block = max(table(value, np.full(len(value), 2))[:, 2].max(), 0)
    assert value.total(n).sum() >= exact_optimum(value, budget, lower, upper) - block - 1e-15


def test_skipping_frees_budget_for_valuable_prompts():
    value = PointValue([0.0, 1.0, 0.3, 0.4, 1e-6])
    n = solve(value, 16, lower=0, upper=128)
    assert n.tolist()[:2] == [0, 0]
    assert n.sum() == 16
    assert value.total(n).sum() > value.total(solve(value, 16, lower=2)).sum()
    same = solve(PointValue(np.full(10, 0.3)), 10, lower=0)  # five blocks, not ten lone rollouts
    assert same.tolist() == [2] * 5 + [0] * 5


@given(problems(most=30), st.integers(0, 40))
@settings(max_examples=300)
def test_sorting_and_searching_agree(problem, table_limit):
    value, budget, lower, upper = problem
    np.testing.assert_array_equal(
        solve(value, budget, lower, upper), solve(value, budget, lower, upper, table_limit=table_limit)
    )


@pytest.mark.parametrize("lower", [0, 1, 2])
@pytest.mark.parametrize("table_limit", [0, 1000])
def test_sorting_and_searching_agree_for_many_prompts(lower, table_limit):
    rng = np.random.default_rng(7)
    p = 1 / (1 + np.exp(-rng.normal(-0.8, 2.6, 5000)))
    trials = rng.integers(4, 17, 5000)
    passed = rng.binomial(trials, p)
    cost = rng.lognormal(3, 1, 5000)
    for value in (PointValue(p), PointValue(passed / trials), BetaValue(0.3 + passed, 0.4 + trials - passed)):
        for budget in (5000 * lower, 11_111, 40_000, 400_000):
            budget = max(budget, 5000 * lower)
            want = solve(value, budget, lower, 128)
            np.testing.assert_array_equal(want, solve(value, budget, lower, 128, table_limit=table_limit))
        want = solve(value, 40 * cost.sum(), lower, 128, cost)
        np.testing.assert_array_equal(want, solve(value, 40 * cost.sum(), lower, 128, cost, table_limit=table_limit))


def test_a_far_upper_bound_costs_little():
    rng = np.random.default_rng(1)
    value = BetaValue(rng.uniform(0.1, 9, 20_000), rng.uniform(0.1, 9, 20_000))
    n = solve(value, 160_000, 2, 10**9)
    np.testing.assert_array_equal(n, solve(value, 160_000, 2, int(n.max()) + 5))


def test_ties_are_spread_and_settled_in_order():
    assert solve(PointValue([0.3] * 4), 14).tolist() == [4, 4, 3, 3]
    # nothing to gain: what is left goes to those with fewest, not all to the first
    assert solve(PointValue([0.0, 1.0, 0.0]), 13, [2, 3, 2], 128).tolist() == [5, 4, 4]
    assert solve(PointValue([0.0, 1.0, 0.0]), 13, 2, [3, 128, 128]).tolist() == [3, 5, 5]
    assert solve(PointValue([0.0, 0.5]), 400, 2, [300, 128]).tolist() == [272, 128]
    many = solve(PointValue(np.full(200_000, 0.2)), 1_000_001, 2, 128)  # the searched way, one big tie
    assert many[0] == 6
    assert (many[1:] == 5).all()


@st.composite
def priced(draw, lowest):
    value, _, lower, upper = draw(problems(lowest=lowest, most=5))
    m = len(value)
    cost = np.array(draw(st.lists(st.integers(1, 7), min_size=m, max_size=m)))
    return value, int(cost @ lower) + draw(st.integers(0, 80)), lower, upper, cost


@given(priced(lowest=1))
@settings(max_examples=200)
def test_costs_are_within_one_increment_of_the_optimum(problem):
    value, budget, lower, upper, cost = problem
    n = solve(value, budget, lower, upper, cost)
    assert cost @ n <= budget
    assert (lower <= n).all()
    assert (n <= upper).all()
    increment = np.diff(table(value, upper + 1), axis=1).max()
    assert value.total(n).sum() >= exact_optimum(value, budget, lower, upper, cost) - increment - 1e-15


@given(priced(lowest=0))
@settings(max_examples=200)
def test_costs_and_skipping_are_within_one_block(problem):
    value, budget, lower, upper, cost = problem
    n = solve(value, budget, lower, upper, cost)
    assert cost @ n <= budget
    assert (lower <= n).all()
    assert (n <= upper).all()
    block = table(value, np.full(len(value), 2))[:, 2].max()
    assert value.total(n).sum() >= exact_optimum(value, budget, lower, upper, cost) - block - 1e-15


@given(values(), st.floats(0.01, 50), st.data())
@settings(max_examples=100)
def test_fractional_costs_never_exceed_the_budget(value, spare, data):
    m = len(value)
    cost = np.array(data.draw(st.lists(st.floats(0.01, 3), min_size=m, max_size=m)))
    budget = float(2 * cost.sum()) + spare
    n = solve(value, budget, 2, 128, cost)
    assert cost @ n <= budget
    assert (n >= 2).all()
    assert (n <= 128).all()


def test_unit_costs_buy_the_same_except_worthless_rollouts():
    p = np.random.default_rng(0).uniform(0.05, 0.95, 40)
    np.testing.assert_array_equal(solve(PointValue(p), 320), solve(PointValue(p), 320, cost=np.ones(40)))
    assert solve(PointValue([0.0, 0.3]), 1000, 2, 10, [1.0, 1.0]).tolist() == [2, 10]
    cheap, dear = solve(PointValue([0.3, 0.3]), 1000, 2, 128, [5.0, 50.0])
    assert cheap > dear


def test_no_prompts():
    assert solve(PointValue([]), 0).shape == (0,)
    assert solve(PointValue([]), 5.5, cost=[]).shape == (0,)
    with pytest.raises(ValueError, match="budget"):
        solve(PointValue([]), 1)


def test_bounds_that_leave_no_choice():
    value = PointValue([0.2, 0.0])
    assert solve(value, 7, [3, 4], [3, 4]).tolist() == [3, 4]
    assert solve(value, 256).tolist() == [128, 128]
    assert solve(value, 4).tolist() == [2, 2]
    assert solve(value, 1, 0, 5).sum() == 1
    assert solve(value, 0, 0, 5).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("budget", {"budget": 3}),
        ("budget", {"budget": 257}),
        ("budget", {"budget": -1}),
        ("budget", {"budget": 7.5}),
        ("budget", {"budget": float("nan")}),
        ("budget", {"budget": "many"}),
        ("budget", {"budget": 3, "cost": [1, 1]}),
        ("budget", {"budget": float("inf"), "cost": [1, 1]}),
        ("lower", {"lower": 5, "upper": 4}),
        ("lower", {"lower": [2, 9], "upper": [3, 8]}),
        ("lower", {"lower": -1}),
        ("lower", {"lower": 1.5}),
        ("lower", {"lower": [1, 2, 3]}),
        ("lower", {"lower": float("nan")}),
        ("upper", {"upper": [[8, 8]]}),
        ("upper", {"upper": [8, float("nan")]}),
        ("upper", {"upper": float("inf")}),
        ("upper", {"upper": None}),
        ("cost", {"cost": [1]}),
        ("cost", {"cost": [1, 0]}),
        ("cost", {"cost": [1, -2]}),
        ("cost", {"cost": [1, float("nan")]}),
        ("cost", {"cost": [1, float("inf")]}),
    ],
)
def test_bad_arguments_are_named(name, arguments):
    with pytest.raises(ValueError, match=f"^{name}"):
        solve(PointValue([0.2, 0.7]), **{"budget": 16, **arguments})
