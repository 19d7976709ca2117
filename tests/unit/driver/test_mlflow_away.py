"""MLflow's server is away when a driver starts: a new run ends at once, one that goes on waits for the server."""

from __future__ import annotations

import asyncio

import pytest

from kray.config import KrayConfig
from kray.driver import actor
from kray.driver.stop import Stopped
from kray.errors import InfrastructureError


@pytest.fixture
def driver_of(tmp_path, monkeypatch):
    """Return a driver that was started again so many times, and a list of its attempts at a server that is away for some."""
    monkeypatch.setattr(actor, "SERVER_POLL_S", 0.01)

    def make(restarts: int, away: float):
        attempts: list[str] = []

        def tracker(track, folder, name, params, tags, text, known, resumed, *rest):
            attempts.append(known)
            if len(attempts) <= away:
                raise InfrastructureError("MLflow at http://127.0.0.1:1 (track.uri) cannot be used: refused")
            return f"tracker of {known} from step {resumed}"

        monkeypatch.setattr(actor, "Tracker", tracker)
        return actor.Driver(KrayConfig(), "model", str(tmp_path), "", {}, restarts), attempts

    return make


def test_a_driver_that_was_started_again_waits_for_the_server(driver_of):
    driver, attempts = driver_of(restarts=1, away=5)
    assert asyncio.run(driver._connect_tracker("run-1", 7)) == "tracker of run-1 from step 7"
    assert attempts == ["run-1"] * 6


def test_a_new_run_does_not_wait(driver_of):
    driver, attempts = driver_of(restarts=0, away=5)
    with pytest.raises(InfrastructureError, match="MLflow at"):
        asyncio.run(driver._connect_tracker("", None))
    assert len(attempts) == 1


def test_waiting_has_an_end_and_can_be_stopped(driver_of, monkeypatch):
    driver, _ = driver_of(restarts=1, away=float("inf"))

    async def stopped():
        waiting = asyncio.ensure_future(driver._connect_tracker("run-1", 7))
        await asyncio.sleep(0.1)
        await driver.stop("by SIGTERM")
        await waiting

    with pytest.raises(Stopped):
        asyncio.run(asyncio.wait_for(stopped(), 20))
    monkeypatch.setattr(actor, "SERVER_WAIT_S", 0.1)
    late, attempts = driver_of(restarts=1, away=float("inf"))
    with pytest.raises(InfrastructureError):
        asyncio.run(asyncio.wait_for(late._connect_tracker("run-1", 7), 20))
    assert len(attempts) > 1
