"""Restart budgets."""

from __future__ import annotations

from kray.driver.recovery import Restarts


def test_restart_delays_and_budget():
    restarts = Restarts(3, 100.0)
    assert restarts.lost(0.0, True) == 0.0
    assert restarts.lost(1.0, False) == 2.0
    assert restarts.lost(2.0, False) == 4.0
    assert restarts.lost(99.0, True) is None
    assert restarts.lost(100.0, True) == 0.0  # the first is forgotten
    endless = Restarts(100, 0.0)
    assert [endless.lost(0.0, False) for _ in range(9)][-3:] == [60.0] * 3
    assert Restarts(0, 0.0).lost(0.0, True) is None
