"""An engine whose model is divided between two processes: it samples what one process samples, and is lost as a whole."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import psutil
import pytest
from logged_lines import logged_lines
from tiny_pool import RunningPool, gather, outcomes, same, tasks

from kray.rollout import engine_supervisor


@pytest.fixture(scope="module")
def whole(ray_local, tied_policy):
    """An engine of one process, which starts while the other does."""
    whole = RunningPool(tied_policy, 1, "whole")
    yield whole
    whole.close()


@pytest.fixture(scope="module")
def divided(ray_local, tied_policy, whole):
    divided = RunningPool(tied_policy, 1, "divided", parts=2)
    yield divided
    divided.close()


def processes(pool) -> list[psutil.Process]:
    """The processes that vLLM started for the engine."""
    actor = pool.run(started(pool))
    return [child for child in psutil.Process(actor).children() if "resource_tracker" not in " ".join(child.cmdline())]


async def started(pool) -> int:
    return (await pool.pool.engines[0].actor.start.remote())["pid"]


def wait_until_gone(given: list[psutil.Process], limit_s: float) -> None:
    _, alive = psutil.wait_procs(given, timeout=limit_s)
    assert not alive, [process.cmdline() for process in alive]


def test_two_processes_sample_the_tokens_of_one(whole, divided):
    learner, found = divided.learner, []
    for version in range(2):
        if version:
            learner.shake()
        published = learner.publication(version)
        gaps = [pool.run(pool.pool.publish(published)) for pool in (whole, divided)]
        assert max(gaps) < 1e-4
        orders = list(tasks(12, max_tokens=40))
        one, two = (pool.run(gather(pool.pool, pool.fresh(orders))) for pool in (whole, divided))
        assert same(one, two)
        for task in orders:
            for rollout in two[task.prompt_id]:
                assert rollout.policy_versions == ((version, 0, len(rollout.tokens)),)
                expected = learner.logprobs([*task.prompt_tokens, *rollout.tokens.tolist()])[-len(rollout.tokens) :]
                np.testing.assert_allclose(rollout.logprobs, expected, atol=2e-4)
        found.append(two)
    assert not same(*found), "new weights sample the tokens of the old ones"
    assert "copy" in divided.pool.engines[0].proof.seconds
    assert whole.pool.losses == divided.pool.losses == 0
    assert len(processes(divided)) == 2
    assert len(processes(whole)) == 0


def test_a_killed_process_is_the_loss_of_its_engine(divided, monkeypatch):
    """Once at work and once idle."""
    pool = divided.pool
    monkeypatch.setattr(engine_supervisor, "HEARTBEAT_S", 1.0)
    orders = list(tasks(24, rollouts=8, max_tokens=100))
    before = processes(divided)
    lost_after_s = []

    async def scenario():
        await pool.publish(divided.learner.publication(7))
        reference = await gather(pool, divided.fresh(orders))
        seen = []
        async for outcome in outcomes(pool, divided.fresh(orders)):
            if not seen:
                os.kill(before[1].pid, signal.SIGKILL)
                killed = time.monotonic()
                while not pool.losses:
                    assert time.monotonic() - killed < 30
                    await engine_supervisor.event_set(pool.state.engine_changed, 0.1)
                lost_after_s.append(time.monotonic() - killed)
            seen.append(outcome)
        return reference, {outcome.task.prompt_id: outcome.rollouts for outcome in seen}

    with logged_lines() as lines:
        reference, after = divided.run(scenario())
    assert same(reference, after)
    assert pool.losses == 1
    assert any(f"vLLM's process VllmWorker-1 (pid {before[1].pid}) ended" in line for line in lines), lines
    wait_until_gone(before, 30)
    now = processes(divided)
    assert len(now) == 2

    os.kill(now[0].pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while pool.losses < 2:
        assert time.monotonic() < deadline, "the loss of an idle engine was not noticed"
        time.sleep(0.1)
    wait_until_gone(now, 30)
