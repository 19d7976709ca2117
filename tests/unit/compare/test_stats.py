"""Intervals over paired seeds, and when a curve reaches a goal."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kray.compare.stats import cost_to, has_spread, holm, interval, paired, ratio, share

numbers = st.floats(-10, 10)


@given(st.lists(numbers, min_size=2, max_size=8, unique=True).filter(has_spread), numbers)
def test_the_interval_is_that_of_the_paired_t_test(x, least):
    found = interval(x)
    low, high = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)
    assert found.up == sum(number > 0 for number in x)
    p = found.p_value(least)
    assert p == pytest.approx(stats.ttest_1samp(x, least).pvalue, rel=1e-6, abs=1e-9)
    assert (p < 0.05) == (not found.low <= least <= found.high) or p == pytest.approx(0.05)


@given(st.dictionaries(st.integers(0, 9), numbers, min_size=2), numbers)
def test_what_all_seeds_share_does_not_widen_a_paired_interval(theirs, shift):
    jitter = {seed: 0.01 * math.sqrt(seed) for seed in theirs}
    ours = {seed: x + shift + jitter[seed] for seed, x in theirs.items()}
    found, alone = paired(ours, theirs), interval([shift + extra for extra in jitter.values()])
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(-1, 1))
def test_seeds_without_spread_have_no_interval(theirs, shift):
    found = paired({s: x + shift for s, x in enumerate(theirs)}, dict(enumerate(theirs)))
    assert found.mean == pytest.approx(shift)
    assert found.flat
    assert all(math.isnan(x) for x in (found.low, found.high, found.p_value(0.0)))
    assert not interval([0.5]).flat


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_agrees_with_its_step_down_procedure(p):
    rejected, m = set(), len(p)
    for k, i in enumerate(sorted(range(m), key=lambda i: p[i])):
        if p[i] * (m - k) > 0.05:
            break
        rejected.add(i)
    adjusted = holm(p)
    assert {i for i, x in enumerate(adjusted) if x <= 0.05} == rejected
    assert all(x >= y for x, y in zip(adjusted, p, strict=True))


def test_holm_counts_claims_that_could_not_be_tested():
    assert holm([0.01, math.nan, 0.02])[::2] == pytest.approx([0.03, 0.04])
    assert math.isnan(holm([0.01, math.nan])[1])
    assert holm([]) == []


def test_only_seeds_that_both_have_count():
    found = paired({0: 1.0, 1: 5.0, 2: 9.0}, {1: 1.0, 2: 3.0, 7: 100.0})
    assert (found.mean, found.seeds) == (5.0, 2)
    assert ratio({0: 3.0, 1: 1.0}, {0: 2.0, 1: 0.0}).mean == 1.5  # a ratio to nothing is left out
    assert math.isnan(interval([1.0]).low)
    assert math.isnan(interval([]).mean)


def test_a_share_of_the_ceiling_is_a_ratio_of_means():
    base = {0: 0.1, 1: 0.3}
    assert share({0: 0.2, 1: 0.3}, base, {0: 0.2, 1: 0.5}) == pytest.approx(1 / 3)
    assert math.isnan(share(base, base, {0: 0.0, 1: 0.3}))


def test_a_goal_is_reached_between_two_evaluations():
    assert cost_to([0, 100, 200], [0.1, 0.2, 0.4], 0.3) == pytest.approx(150)
    assert cost_to([0, 100, 200], [0.1, 0.4, 0.2], 0.25) == pytest.approx(50)  # the first time
    assert cost_to([0, 100], [0.3, 0.4], 0.2) == 0
    assert math.isnan(cost_to([0, 100], [0.1, 0.2], 0.3))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=10), st.floats(0, 1))
def test_the_cost_lies_where_the_curve_does(accuracies, goal):
    costs = np.arange(len(accuracies)) * 10.0
    found = cost_to(costs.tolist(), accuracies, goal)
    if math.isnan(found):
        assert max(accuracies) < goal
    else:
        assert np.interp(found, costs, accuracies) >= goal - 1e-6
