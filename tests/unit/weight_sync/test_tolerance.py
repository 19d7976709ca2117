"""How far an engine's log-probabilities may be from the learner's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.weight_sync.tolerance import FLOOR, MARGIN, TOLERANCE, Calibration, mean_gap

DTYPES = sorted(TOLERANCE)
NATS = st.floats(0, 20)


@pytest.mark.parametrize("dtype", DTYPES)
@given(gap=NATS, size=NATS, later=NATS)
def test_limit_is_between_floor_and_tolerance(dtype, gap, size, later):
    limit = Calibration(gap, size).limit(dtype, np.array([-later]))
    assert FLOOR[dtype] <= limit <= TOLERANCE[dtype]


def test_limit_is_a_multiple_of_the_engines_own_rounding():
    learner = np.float32([-1, -3])
    calibration = Calibration.of(learner + np.float32([0.01, -0.03]), learner)
    assert calibration.gap == pytest.approx(0.02, rel=1e-5)
    assert calibration.limit("bfloat16", learner) == pytest.approx(MARGIN * 0.02, rel=1e-5)
    # the logits have grown, and rounding with them
    assert calibration.limit("bfloat16", 1.5 * learner) == pytest.approx(1.5 * MARGIN * 0.02, rel=1e-5)
    # tokens that have become likely are no reason to ask for more
    assert calibration.limit("bfloat16", 0.1 * learner) == pytest.approx(MARGIN * 0.02, rel=1e-5)


def test_an_engine_that_rounds_too_much_is_held_to_the_tolerance():
    assert Calibration(5.0, 1.0).limit("bfloat16", np.array([-1.0])) == TOLERANCE["bfloat16"]


def test_gap_of_what_is_not_a_number_is_within_no_limit():
    gap = mean_gap(np.array([np.nan, -1.0]), np.array([-1.0, -1.0]))
    assert not gap <= TOLERANCE["bfloat16"]
