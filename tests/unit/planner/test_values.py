"""Values: closed forms agree with their definitions, and gains have the properties that the solver needs."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from kray.planner import BetaValue, PointValue

rates = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 1e-12, 1 - 1e-12, 1e-300]), st.floats(0, 1))
shapes = st.one_of(st.sampled_from([0.02, 1.0, 63.9, 64.0, 1e3, 1e6]), st.floats(0.02, 200))


def exact_total(p: float, n: int) -> Fraction:
    p = Fraction(p)
    return (1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2 if n else Fraction(0)


@given(rates, st.integers(0, 130))
@settings(max_examples=200)
def test_point_value_is_the_formula_of_the_paper(p, n):
    value = PointValue([p])
    total = float(exact_total(p, n))
    gain = float(exact_total(p, n + 1) - exact_total(p, n))
    assert value.total([n])[0] == pytest.approx(total, rel=1e-10, abs=1e-300)
    assert value.gain([n])[0] == pytest.approx(gain, rel=1e-10, abs=1e-300)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 130))
@settings(max_examples=200)
def test_beta_value_is_exact_on_rational_shapes(a, b, n):
    def beta_ratio(i, j):
        """B(a + i, b + j) / B(a, b) for integers."""
        out = Fraction(1)
        for k in range(i):
            out *= a + k
        for k in range(j):
            out *= b + k
        for k in range(i + j):
            out /= a + b + k
        return out

    def total(n):
        return beta_ratio(1, 2) - beta_ratio(1 + n, 2) - beta_ratio(1, 2 + n) if n else Fraction(0)

    value = BetaValue([a], [b])
    assert value.total([n])[0] == pytest.approx(float(total(n)), rel=1e-9)
    assert value.gain([n])[0] == pytest.approx(float(total(n + 1) - total(n)), rel=1e-10)


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.7), (1, 1), (2.5, 40), (40, 2.5), (90, 300)])
@pytest.mark.parametrize("n", [2, 3, 17, 128])
def test_beta_value_is_the_integral_of_the_point_value(a, b, n):
    density = stats.beta(a, b)
    # over quantiles u = cdf(p), where the density has no pole
    want = integrate.quad(lambda u: PointValue([density.ppf(u)]).total([n])[0], 0, 1, limit=400)[0]
    assert BetaValue([a], [b]).total([n])[0] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.99])
def test_a_certain_belief_is_the_point_value(p):
    for scale, tolerance in ((1e6, 1e-1), (1e10, 1e-5), (1e14, 1e-9)):
        n = np.array([2, 8, 100])
        belief, point = BetaValue(np.full(3, p * scale), np.full(3, (1 - p) * scale)), PointValue(np.full(3, p))
        np.testing.assert_allclose(belief.total(n), point.total(n), rtol=tolerance)
        np.testing.assert_allclose(belief.gain(n)[:2], point.gain(n)[:2], rtol=tolerance)


@given(st.lists(rates, min_size=1, max_size=20), st.lists(st.tuples(shapes, shapes), min_size=1, max_size=20))
@settings(max_examples=100)
def test_gains_are_differences_of_totals_and_never_rise(ps, ab):
    alpha, beta = np.array(ab).T
    for value in (PointValue(ps), BetaValue(alpha, beta)):
        m = len(value)
        totals = np.array([value.total(np.full(m, n)) for n in range(200)])
        gains = np.array([value.gain(np.full(m, n)) for n in range(199)])
        np.testing.assert_allclose(gains, np.diff(totals, axis=0), rtol=1e-9, atol=1e-14)
        assert (gains >= 0).all()
        assert (gains[0] == 0).all()
        assert (np.diff(gains[1:], axis=0) <= 0).all()
        assert (totals[:2] == 0).all()


@pytest.mark.parametrize("bad", [[np.nan], [-0.1], [1.1], [[0.5]], 0.5, ["x"], [np.inf]])
def test_bad_success_rates_are_named(bad):
    with pytest.raises(ValueError, match="success_rate"):
        PointValue(bad)


@pytest.mark.parametrize("bad", [[np.nan], [0.0], [-1.0], [np.inf], [[1.0]], ["x"]])
def test_bad_shapes_are_named(bad):
    with pytest.raises(ValueError, match="alpha"):
        BetaValue(bad, [1.0])
    with pytest.raises(ValueError, match="beta"):
        BetaValue([1.0], bad)
    with pytest.raises(ValueError, match="beta"):
        BetaValue([1.0], [1.0, 2.0])


@pytest.mark.parametrize("bad", [[1], [1, -1], [1.5, 2.0], 3, [[1, 2]]])
def test_bad_counts_are_named(bad):
    for value in (PointValue([0.1, 0.2]), BetaValue([1, 2], [1, 2])):
        for method in (value.total, value.gain):
            with pytest.raises(ValueError, match=r"^n must"):
                method(bad)


def test_no_prompts():
    for value in (PointValue([]), BetaValue([], [])):
        assert len(value) == 0
        assert value.total([]).shape == value.gain([]).shape == (0,)
