"""Laws of the number of engines that a pool wants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.rollout.autoscaling import Sizing

events = st.lists(st.tuples(st.floats(0, 20), st.integers(0, 500)), min_size=1, max_size=60)


@given(events, st.integers(0, 3), st.integers(0, 4), st.integers(1, 64), st.floats(0.1, 30))
def test_the_largest_need_of_the_last_seconds_within_bounds(events, least, more, per_engine, idle_s):
    most = max(1, least + more)
    sizing = Sizing(least, most, per_engine, idle_s)
    now, needs = 0.0, []
    for passed, rollouts in events:
        now += passed
        need = min(most, max(least, -(-rollouts // per_engine)))
        needs.append((now, need))
        recent = [n for when, n in needs if when + idle_s > now]
        wanted = sizing.wanted(rollouts, now)
        assert need <= wanted <= most
        assert wanted == max(recent)


def test_nothing_to_do_for_long_enough_leaves_none():
    sizing = Sizing(0, 4, 16, 10.0)
    assert sizing.wanted(0, 0.0) == 0
    assert sizing.wanted(33, 1.0) == 3
    assert sizing.wanted(0, 10.9) == 3
    assert sizing.wanted(0, 11.1) == 0


@pytest.mark.parametrize(("least", "most", "per_engine"), [(2, 1, 1), (-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_sizes_that_cannot_be_are_refused(least, most, per_engine):
    with pytest.raises(ValueError, match="cannot have"):
        Sizing(least, most, per_engine, 1.0)
