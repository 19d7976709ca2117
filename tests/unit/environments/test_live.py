"""Live environments in session hosts: sessions, failures, and that no process is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from kray.config.schema import EnvironmentConfig
from kray.environments import check_environment
from kray.environments.workers import EnvironmentWorkers
from kray.errors import KrayError
from kray.records import Prompt

TESTS = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _findable(monkeypatch):
    """Let the hosts import the modules of tests/."""
    monkeypatch.syspath_prepend(str(TESTS))


def prompt(text: str = "1+1=") -> Prompt:
    return Prompt("p", "2", "exact", "test", text=text)


def run_workers(work, **settings):
    settings = {"name": "sample_environments:LiveEcho", "step_timeout_s": 5.0, **settings}

    async def go():
        workers = EnvironmentWorkers(EnvironmentConfig(**settings))
        try:
            return await asyncio.wait_for(work(workers), 60)
        finally:
            workers.close()

    return asyncio.run(go())


def hosts_of(pid: int) -> list[psutil.Process]:
    children = [child for child in psutil.Process(pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in children if any("kray.environments.host" in part for part in child.cmdline())]


async def until(condition, what: str, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)
    return found


def test_every_rollout_has_a_session_of_its_own():
    async def work(workers):
        (start,) = await workers.begin([(prompt(), 7)])
        observed, states = [start.observation], [start.state, start.state]
        for action in ("a", "b", "c"):
            turns = await workers.step([(state, action + str(i), False) for i, state in enumerate(states)])
            observed.append([turn.observation for turn in turns])
            states = [turn.state for turn in turns]
        (cut,) = await workers.step([(start.state, "x", True)])
        (going,) = await workers.step([(start.state, "x", False)])
        return observed, turns, cut, await workers.finish([going.state])

    observed, turns, cut, finished = run_workers(work, options={"opening": "seed {seed}"}, workers=2)
    assert observed == ["seed 7", ["<a0>", "<a1>"], ["<b0>", "<b1>"], ["", ""]]
    assert [(turn.ended, turn.reward) for turn in turns] == [(True, 1.0)] * 2
    assert (cut.ended, cut.reward) == (finished[0].ended, finished[0].reward) == (True, pytest.approx(1 / 3))


def test_sessions_are_closed_when_they_end_fail_or_are_released(tmp_path):
    log = tmp_path / "log"

    def noted():
        return Counter(line.split()[0] for line in log.read_text().splitlines())

    async def work(workers):
        (start,) = await workers.begin([(prompt(), 7)])
        turns = await workers.step(
            [(start.state, action, action == "last") for action in ("last", "raise", "a", "b", "c")]
        )
        # The group's own reset, the rollout that ended and the one that failed.
        await until(lambda: noted()["close"] == 3, "three sessions are closed")
        workers.release([start.state, turns[2].state])
        await until(lambda: noted()["close"] == 4, "the released session is closed")
        (gone,) = await workers.step([(turns[2].state, "again", False)])
        cancelled = asyncio.ensure_future(workers.step([(turns[3].state, "hang", False)]))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        await until(lambda: noted()["close"] == 5, "the session of a cancelled turn is closed")
        return gone

    gone = run_workers(work, options={"log": str(log)})
    assert gone == "environment: ValueError: its session has ended (host.py:{})".format(gone.rpartition(":")[2][:-1])
    assert noted() == {"start": 1, "reset": 6, "close": 6, "stop": 1}


def test_known_opening_needs_no_session(tmp_path):
    log = tmp_path / "log"

    async def work(workers):
        starts = await workers.begin([(prompt(), seed) for seed in range(20)])
        before = log.read_text()
        (turn,) = await workers.step([(starts[3].state, "a", False)])
        return starts, before, turn

    starts, before, turn = run_workers(work, options={"opening": "go", "static": True, "log": str(log)})
    assert {start.observation for start in starts} == {"go"}
    assert "reset" not in before
    assert turn.observation == "<a>"


def test_session_that_begins_differently_is_refused():
    async def work(workers):
        (start,) = await workers.begin([(prompt(), 7)])
        return await workers.step([(start.state, "a", False)])

    (turn,) = run_workers(work, options={"opening": "reset {reset}"})
    assert turn.startswith("environment: ValueError: the environment is not reproducible at reset")
    assert "'reset 2'" in turn
    assert "'reset 1'" in turn


def test_failing_session_fails_its_own_rollout_only():
    async def work(workers):
        bad, start = await workers.begin([(prompt("broken"), 0), (prompt(), 0)])
        failing = ["raise", "hang", "number"]
        turns = await workers.step([(start.state, action, False) for each in failing for action in (each, "fine")])
        (rewarded,) = await workers.step([(start.state, "worth2", True)])
        again = await workers.step([(turn.state, "more", False) for turn in turns[1::2]])
        return bad, dict(zip(failing, turns[::2], strict=True)), again, rewarded

    bad, failed, again, rewarded = run_workers(work, step_timeout_s=1.0)
    assert bad.startswith("environment: RuntimeError: it does not start (sample_environments.py:")
    assert failed["raise"].startswith("environment: RuntimeError: it broke")
    assert failed["hang"] == "environment: timeout after 1 s (environment.step_timeout_s) in step"
    assert "TypeError" in failed["number"]
    assert "the reward is 2, not in [0, 1]" in rewarded
    assert [turn.observation for turn in again] == ["<more>"] * 3


@pytest.mark.parametrize(("action", "why"), [("die", "exit code 3"), ("block", "did not answer within 5.6 s")])
def test_lost_host_costs_its_sessions_and_is_replaced(action, why):
    async def work(workers):
        starts = await workers.begin([(prompt(), 0), (prompt(), 1)])
        # With two hosts every second session is on the same one.
        going = await workers.step([(starts[0].state, "a", False) for _ in range(4)])
        (lost,) = await workers.step([(going[0].state, action, False)])
        rest = await workers.step([(turn.state, "b", False) for turn in going[1:]])
        return lost, rest, await workers.step([(starts[1].state, "c", False) for _ in range(4)])

    lost, rest, after = run_workers(work, workers=2, step_timeout_s=0.2)
    assert lost.startswith("environment: its host d")
    assert why in lost
    assert [isinstance(turn, str) for turn in rest] == [False, True, False]
    assert rest[1] == "environment: the host of its session was lost"
    assert [turn.observation for turn in after] == ["<c>"] * 4


def test_host_that_dies_between_two_turns_is_noticed():
    async def work(workers):
        (start,) = await workers.begin([(prompt(), 0)])
        (going,) = await workers.step([(start.state, "a", False)])
        (host,) = hosts_of(os.getpid())
        host.send_signal(signal.SIGKILL)
        await until(lambda: not psutil.pid_exists(host.pid), "the host has been collected")
        return await workers.step([(going.state, "b", False), (start.state, "c", False)])

    lost, new = run_workers(work)
    assert lost == "environment: its host died with its sessions (signal 9)"
    assert new.observation == "<c>"


def test_environment_that_cannot_be_started_ends_the_run():
    async def work(workers):
        await workers.begin([(prompt(), 0)])

    with pytest.raises(KrayError, match="no session host could be started in 3 attempts: RuntimeError: it cannot be"):
        run_workers(work, options={"opening": "never"})


def test_live_environments_are_checked_and_never_pickled():
    check_environment("sample_environments:LiveEcho", {"times": 3})
    with pytest.raises(ValueError, match="times must be below 100"):
        check_environment("sample_environments:LiveEcho", {"times": 100})


def test_hosts_end_with_a_driver_that_is_killed(tmp_path):
    log = tmp_path / "log"
    program = (
        "import asyncio\nfrom kray.config.schema import EnvironmentConfig\n"
        "from kray.environments.workers import EnvironmentWorkers\nfrom kray.records import Prompt\n"
        "async def go():\n"
        f"    options = {{'log': {str(log)!r}}}\n"
        "    workers = EnvironmentWorkers(EnvironmentConfig('sample_environments:LiveEcho', options=options))\n"
        "    (start,) = await workers.begin([(Prompt('p', '', 'exact', 'test', text='1'), 0)])\n"
        "    await workers.step([(start.state, 'a', False)])\n"
        "    print('going', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(go())\n"
    )
    path = os.pathsep.join([str(TESTS), *(p for p in sys.path if p)])
    driver = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "going\n"
        (host,) = hosts_of(driver.pid)
    finally:
        driver.kill()
        driver.wait(10)
    host.wait(10)
    assert log.read_text().splitlines()[-2:] == [f"close {host.pid}", f"stop {host.pid}"]
