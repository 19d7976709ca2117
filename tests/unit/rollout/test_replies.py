"""A stopped actor is noticed by its silence, a stopped driver is not taken for one."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kray.cluster.process_identity import is_stopped
from kray.rollout import replies
from kray.rollout.replies import MOST_COUNTED_S, Awake, while_alive, within

ROOT = Path(__file__).parents[3]


def test_only_seconds_in_which_this_process_ran_count():
    awake = Awake(100.0)
    assert [awake.count(now) for now in (101.0, 102.5, 152.5, 153.0)] == [1.0, 2.5, 2.5 + MOST_COUNTED_S, 5.0]


def test_a_reply_that_is_there_after_a_pause_of_the_driver_is_taken(monkeypatch):
    """The driver was stopped for 1,000 s, and its clock says so before the reply was read."""
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(replies, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    monkeypatch.setattr(replies, "SLICE_S", 0.01)

    async def wait():
        reply = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(within(reply, 20.0))
        await asyncio.sleep(0.05)
        clock.now_s += 1000.0
        await asyncio.sleep(0.05)
        reply.set_result("here")
        return await waiting

    assert asyncio.run(wait()) == "here"


@pytest.mark.parametrize("limit_s", [0.0, 0.03])
def test_a_missing_reply_ends_the_wait(limit_s):
    async def wait():
        await within(asyncio.get_running_loop().create_future(), limit_s)

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(wait(), 10.0))


def test_a_process_that_is_seen_to_be_stopped_ends_the_wait_before_its_deadline(monkeypatch):
    monkeypatch.setattr(replies, "SLICE_S", 0.01)
    monkeypatch.setattr(replies, "STOPPED_S", 0.03)
    asked: list[bool] = []

    def stopped(which: bool) -> bool:
        asked.append(which)
        return which

    async def wait(which: bool, limit_s: float):
        await within(asyncio.get_running_loop().create_future(), limit_s, lambda: stopped(which))

    for which, limit_s in ((True, 3600.0), (False, 0.1)):
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(wait(which, limit_s), 10.0))
    assert asked[0]
    assert len([which for which in asked if not which]) > 1


def silent_after(answers: int):
    """Return a ping that is answered so many times, and the list of its calls."""
    calls: list[int] = []

    async def ping():
        calls.append(1)
        if len(calls) > answers:
            raise TimeoutError

    return ping, calls


def test_a_command_of_a_stopped_actor_ends_with_the_first_ping_that_is_not_answered():
    ping, calls = silent_after(3)

    async def wait():
        await while_alive(asyncio.get_running_loop().create_future(), 3600.0, ping, 0.0)

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(wait(), 10.0))
    assert len(calls) == 4


def test_the_reply_of_a_busy_actor_is_returned_and_its_errors_are_raised():
    async def busy(fails: bool):
        await asyncio.sleep(0.05)
        if fails:
            raise ValueError("from the actor")
        return 7

    ping, calls = silent_after(10**6)
    assert asyncio.run(while_alive(busy(False), 60.0, ping, 0.0)) == 7
    assert calls
    with pytest.raises(ValueError, match="from the actor"):
        asyncio.run(while_alive(busy(True), 60.0, ping, 0.0))


def test_an_error_of_a_ping_is_raised():
    async def lost():
        raise RuntimeError("the actor died")

    async def wait():
        await while_alive(asyncio.get_running_loop().create_future(), 60.0, lost, 0.0)

    with pytest.raises(RuntimeError, match="the actor died"):
        asyncio.run(asyncio.wait_for(wait(), 10.0))


def test_a_stopped_process_is_told_from_one_that_runs_and_one_that_is_gone():
    source = "from kray.cluster.process_identity import this_process as t; print(t(), flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        process = ast.literal_eval(child.stdout.readline())
        assert not is_stopped(process)
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert is_stopped(process)
        assert not is_stopped(process | {"machine": "another"})
        assert not is_stopped(process | {"started": process["started"] + 1})
        assert not is_stopped({})
    finally:
        child.kill()
        child.communicate(timeout=30)
    assert not is_stopped(process)
