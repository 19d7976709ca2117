"""pass@k against counting."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.driver.evaluation import pass_at_k


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_success(case):
    solved, samples, k = case
    draws = list(combinations([i < solved for i in range(samples)], k))
    assert pass_at_k(solved, samples, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize("case", [(3, 2, 1), (-1, 2, 1), (1, 2, 3), (1, 2, 0)])
def test_impossible_counts_are_refused(case):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(*case)
