"""Marginals and the values at nodes against their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from kray.plan_modes import MARGINALS
from kray.planner import BetaValue, CobaValue, GrpoValue, solve
from kray.planner.marginals import ExpectedGain, UntilMixed, make_marginal
from kray.planner.quadrature import nodes

shapes = st.floats(0.05, 60)


def grpo(p, n):
    s = np.arange(n + 1)
    return p * (1 - p) * (stats.binom(n, p).pmf(s) * np.sqrt(s * (n - s))).sum() / n


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.7), (1, 1), (2.5, 40), (300, 900)])
@pytest.mark.parametrize("n", [2, 3, 17, 128])
def test_grpo_value_is_the_integral_of_its_definition(a, b, n):
    density = stats.beta(a, b)
    want = integrate.quad(lambda u: grpo(density.ppf(u), n), 0, 1, limit=200)[0]
    assert GrpoValue([a], [b]).total(np.array([n]))[0] == pytest.approx(want, rel=1e-6)


@given(st.lists(st.tuples(shapes, shapes), min_size=1, max_size=6))
@settings(max_examples=25)
def test_values_at_nodes_are_what_the_solver_needs(pairs):
    alpha, beta = np.array(pairs).T
    for value in (GrpoValue(alpha, beta), CobaValue(alpha, beta, 0.6)):
        m = len(value)
        totals = np.array([value.total(np.full(m, n)) for n in range(132)])
        gains = np.array([value.gain(np.full(m, n)) for n in range(131)])
        np.testing.assert_allclose(gains, np.diff(totals, axis=0), rtol=1e-6, atol=1e-14)
        assert (gains >= 0).all()
        assert (np.diff(gains[1:], axis=0) <= 0).all()
        assert (totals[:2] == 0).all()
        plan = solve(value, 10 * m, 2, 128)
        best = totals[plan, np.arange(m)].sum()
        for i in range(m):  # no exchange of one rollout is better
            for j in range(m):
                if i != j and plan[i] > 2:
                    moved = best - gains[plan[i] - 1, i] + gains[plan[j], j]
                    assert moved <= best + 1e-12


def test_values_at_nodes_far_out():
    value = GrpoValue([3.0, 1e7, 1.0], [5.0, 1e7, 1e6])
    assert value.gain(np.array([10_000, 5, 5]))[0] == 0
    assert value.total(np.array([5000, 128, 128])) == pytest.approx([0.0962, 0.25 * grpo(0.5, 128) * 4, 0], abs=2e-3)
    many = GrpoValue(np.full(40_000, 2.0), np.full(40_000, 3.0))  # too many for a table
    assert many.gain_at(np.array([7]), np.array([9]))[0] == pytest.approx(GrpoValue([2], [3]).gain(np.array([9]))[0])
    with pytest.raises(ValueError, match="failure_rate"):
        CobaValue([1.0], [1.0], 1.5)


events = st.lists(st.one_of(st.sampled_from([0, 1, "hold"]), st.floats(0, 1)), max_size=60)


@given(shapes, shapes, events, st.sampled_from(["paper", "grpo"]))
@settings(max_examples=150)
def test_updated_gain_equals_gain_of_updated_belief(a, b, events, kind):
    make = BetaValue if kind == "paper" else GrpoValue
    marginal = make_marginal("expected_gain", make([a], [b]), np.array([2]), 8)
    n, passed, failed = 2, 0.0, 0.0
    for event in events:
        if event == "hold":
            marginal.allocate(0, 1)
            n += 1
        else:
            marginal.observe(0, event, 1 - event)
            passed, failed = passed + event, failed + 1 - event
        want = make([a + passed], [b + failed]).gain(np.array([n]))[0]
        assert marginal.next_gain(0) == pytest.approx(want, rel=1e-9, abs=1e-300)


def test_until_mixed_is_the_mixing_probability_times_value():
    a, b = 0.7, 1.9
    p, q = nodes(4096)
    mass = np.exp(stats.beta(a, b).logpdf(p)) * 2 * np.sqrt(p * q) * np.pi / 8192

    def after(passed, failed, flying, name="stop_at_mixed"):
        marginal = make_marginal(name, BetaValue([a], [b]), np.array([passed + failed + flying]), 5)
        for label in [1] * passed + [0] * failed:
            marginal.observe(0, label, 1 - label)
        likely = mass * p**passed * q**failed
        return marginal.next_gain(0), likely / likely.sum()

    for flying in (0, 1, 4):
        key, belief = after(0, 3, flying)
        assert key == pytest.approx((belief * p**2 * q ** (2 + flying)).sum(), rel=1e-5)
        key, belief = after(3, 0, flying)
        assert key == pytest.approx((belief * p ** (1 + flying) * q**3).sum(), rel=1e-5)
        assert after(2, 1, flying)[0] == 0
        key, belief = after(2, 1, flying, "hybrid")
        n = 3 + flying
        assert key == pytest.approx((belief * p**2 * q**3 * (p ** (n - 1) + q ** (n - 1))).sum(), rel=1e-5)
    key, belief = after(2, 1, 1, "target_size")
    assert key == pytest.approx((belief * p * q * q).sum() / 5, rel=1e-5)
    assert after(2, 1, 2, "target_size")[0] == 0


def test_marginals_reject_unknown_names_and_other_values():
    value = BetaValue([1.0], [1.0])
    with pytest.raises(ValueError, match=r"plan\.marginal=greedy"):
        make_marginal("greedy", value, np.array([2]), 8)
    assert isinstance(make_marginal("expected_gain", value, np.array([2]), 8), ExpectedGain)
    for name in MARGINALS[1:]:
        assert isinstance(make_marginal(name, value, np.array([2]), 8), UntilMixed)
        with pytest.raises(ValueError, match=r"plan\.value=paper"):
            make_marginal(name, GrpoValue([1.0], [1.0]), np.array([2]), 8)
