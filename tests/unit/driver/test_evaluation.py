"""pass@k against counting, and the entropy of what was sampled."""

from itertools import combinations
from math import isnan, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.driver.evaluation import _entropy, pass_at_k
from kray.metrics import EVAL_ENTROPY
from kray.records import Rollout


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_success(case):
    solved, samples, k = case
    draws = list(combinations([i < solved for i in range(samples)], k))
    assert pass_at_k(solved, samples, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize("case", [(3, 2, 1), (-1, 2, 1), (1, 2, 3), (1, 2, 0)])
def test_impossible_counts_are_refused(case):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(*case)


def test_entropy_is_over_the_tokens_that_the_policy_sampled():
    def rollout(logprobs, sampled=None):
        mask = None if sampled is None else np.array(sampled)
        return Rollout("a", 0, np.zeros(len(logprobs)), np.array(logprobs), "stop", (), sampled=mask)

    plain = rollout([log(0.5), log(0.25)])
    turns = rollout([log(0.5), 0.0, 0.0], [True, False, False])
    assert _entropy([plain, turns]) == pytest.approx(4 * log(2) / 3)
    assert isnan(_entropy([]))
    assert EVAL_ENTROPY == "eval/entropy"
