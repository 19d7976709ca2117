"""Rows are drawn by the size of their advantage, and the gradient keeps its expectation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.config.train_schema import TrainConfig
from kray.train.thinning import draw, inclusion_probabilities
from kray.train.training_rows import step_rows

SIZES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40).map(np.array)


@given(SIZES, st.floats(0.02, 1.0))
def test_probabilities_are_proportional_up_to_1_and_sum_to_the_share(sizes, share):
    p = inclusion_probabilities(sizes, share)
    assert ((p > 0) & (p <= 1)).all()
    assert p.sum() == pytest.approx(share * len(sizes), rel=1e-6)
    below = p < 1
    if below.any():
        rates = (p / sizes)[below]
        assert rates == pytest.approx(np.full(len(rates), rates[0]))
        assert sizes[~below].min(initial=np.inf) >= sizes[below].max()


@given(SIZES, st.floats(0.02, 0.99), st.integers(0, 2**62))
def test_the_number_drawn_is_within_1_of_its_expectation(sizes, share, seed):
    p = inclusion_probabilities(sizes, share)
    drawn = draw(p, seed)
    assert abs(drawn.sum() - p.sum()) < 1 + 1e-6
    assert drawn[p > 1 - 1e-12].all()
    assert (drawn == draw(p, seed)).all()


def test_each_row_is_drawn_with_its_probability():
    p = inclusion_probabilities(np.array([5.0, 0.1, 0.4, 0.4, 1.0, 0.02]), 0.5)
    often = np.mean([draw(p, seed) for seed in range(4000)], axis=0)
    np.testing.assert_allclose(often, p, atol=0.03)


def test_the_weighted_sum_of_rows_has_no_bias(some_groups):
    groups = some_groups(3, [[0, 1, 0, 1, 0], [0.9], [1, 1], [0], [0, 0, 1]])
    for group in groups:
        group.belief = (1.0, 2.0)
    full = step_rows(groups, TrainConfig(baseline="belief"))
    whole = float((full.weights * full.advantages).sum())
    halves = [step_rows(groups, TrainConfig(baseline="belief", thin=0.5), seed) for seed in range(800)]
    assert {len(rows) for rows in halves} <= {len(full) // 2, len(full) // 2 + 1}
    assert np.mean([(rows.weights * rows.advantages).sum() for rows in halves]) == pytest.approx(whole, abs=0.02)
    assert all(rows.candidates == len(full) and rows.effective_groups == full.effective_groups for rows in halves)
