"""A real engine that a signal stops is lost after seconds, and a real process that waited takes its place."""

from __future__ import annotations

import os
import signal
import time

import pytest
from logged_lines import logged_lines
from tiny_pool import RunningPool, gather, same, tasks

from kray.rollout import engine_supervisor
from kray.rollout.replies import STOPPED_S


@pytest.fixture
def running(ray_local, tied_policy):
    running = RunningPool(tied_policy, 1, "spared", spare=True)
    yield running
    running.close()


def test_a_stopped_engine_is_replaced_by_the_spare(running, ray_local, monkeypatch):
    monkeypatch.setattr(engine_supervisor, "HEARTBEAT_S", 1.0)
    pool, orders = running.pool, list(tasks(6))

    async def process() -> int:
        return (await pool.engines[0].actor.start.remote())["pid"]

    running.run(pool.publish(running.learner.publication(0)))
    before = running.run(gather(pool, running.fresh(orders)))
    assert pool.state.spare.waiting
    stopped = running.run(process())
    with logged_lines() as lines:
        os.kill(stopped, signal.SIGSTOP)
        began = time.monotonic()
        while not pool.losses:
            assert time.monotonic() - began < 3 * STOPPED_S + 10
            time.sleep(0.1)
        after = running.run(gather(pool, running.fresh(orders)))
    assert same(before, after)
    assert any("its process is stopped" in line for line in lines), lines
    assert any("the spare process becomes engine-0" in line for line in lines), lines
    assert running.run(process()) != stopped
    # Used once; another waits for the next loss.
    assert pool.state.spare.waiting
