"""Laws of the number of engines that a pool needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.rollout.autoscaling import Autoscaler

events = st.lists(st.tuples(st.floats(0, 20), st.integers(0, 500)), min_size=1, max_size=60)


@given(events, st.integers(0, 3), st.integers(0, 4), st.integers(1, 64), st.floats(0.1, 30))
def test_largest_recent_need_is_desired(events, min_engines, more, per_engine, idle_s):
    max_engines = max(1, min_engines + more)
    autoscaler = Autoscaler(min_engines, max_engines, per_engine, idle_s)
    now, needs = 0.0, []
    for passed, rollouts in events:
        now += passed
        need = min(max_engines, max(min_engines, -(-rollouts // per_engine)))
        needs.append((now, need))
        recent = [n for when, n in needs if when + idle_s > now]
        desired = autoscaler.desired(rollouts, now)
        assert need <= desired <= max_engines
        assert desired == max(recent)


def test_idle_pool_needs_no_engine():
    autoscaler = Autoscaler(0, 4, 16, 10.0)
    assert autoscaler.desired(0, 0.0) == 0
    assert autoscaler.desired(33, 1.0) == 3
    assert autoscaler.desired(0, 10.9) == 3
    assert autoscaler.desired(0, 11.1) == 0


@pytest.mark.parametrize(("min_engines", "max_engines", "per_engine"), [(2, 1, 1), (-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_contradictory_bounds_are_refused(min_engines, max_engines, per_engine):
    with pytest.raises(ValueError, match="cannot have"):
        Autoscaler(min_engines, max_engines, per_engine, 1.0)
