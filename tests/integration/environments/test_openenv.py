"""Conversations with a real OpenEnv server; what happens when it fails, hangs or dies."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import subprocess
import time

import psutil
import pytest
from openenv_python import APP, openenv_python, own_environment

from kray.config.schema import EnvironmentConfig
from kray.environments.workers import EnvironmentWorkers
from kray.errors import KrayError
from kray.records import Prompt


def prompt(target: int | None = 4) -> Prompt:
    return Prompt("p", "" if target is None else json.dumps({"target": target}), "exact", "test", text="Guess: ")


@pytest.fixture(scope="module")
def server():
    """The address of one server for the tests that leave it alive; starting it takes longer than they do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [openenv_python(), "-m", "uvicorn", "guess_server:app", "--host", "127.0.0.1", "--port", port]
    process = subprocess.Popen(command, cwd=APP, env=own_environment())
    try:
        for _ in range(1200):
            assert process.poll() is None
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


def started(app: str) -> dict[str, str]:
    """Options that have a server of its own started."""
    return {"app": f"guess_server:{app}", "python": openenv_python(), "folder": str(APP)}


def run_server(work, step_timeout_s: float = 20.0, workers: int = 1, **options):
    async def go():
        settings = EnvironmentConfig("openenv", options=options, step_timeout_s=step_timeout_s, workers=workers)
        environment = EnvironmentWorkers(settings, start_timeout_s=120.0)
        try:
            return await asyncio.wait_for(work(environment), 150)
        finally:
            environment.close()

    return asyncio.run(go())


def servers() -> list[psutil.Process]:
    """The servers that session hosts have started."""
    below = [child for host in psutil.Process().children() for child in host.children(recursive=True)]
    return [process for process in below if "uvicorn" in process.cmdline()]


def test_conversations_with_a_server(server):
    async def work(workers):
        starts = await workers.begin([(prompt(4), 7), (prompt(None), 7), (prompt(None), 8)])
        first = await workers.step([(starts[0].state, action, False) for action in ("2", "9", "4", "four", "5.5")])
        states = [turn.state for turn in first if not turn.ended]
        second = await workers.step([(state, "4", False) for state in states])
        (cut,) = await workers.step([(starts[0].state, "3", True)])
        found = []
        for start in starts[1:]:
            hints = await workers.step([(start.state, str(digit), False) for digit in range(10)])
            found.append([turn.ended for turn in hints].index(True))
        return starts, first, second, cut, found

    starts, first, second, cut, targets = run_server(work, url=server, workers=2)
    assert {start.observation for start in starts} == {"\n\n0-9?"}
    texts = [turn.observation[0]["content"] if turn.observation else None for turn in first]
    not_a_number = "error: the action is not a number of type integer"
    assert texts == ["+", "-", None, not_a_number, not_a_number]
    assert all(turn.observation[0]["role"] == "user" for turn in first if turn.observation)
    assert (first[2].ended, first[2].reward) == (True, 1.0)
    assert first[2].detail == "sum 1 after 1 rewarded step"
    assert [(turn.ended, turn.reward) for turn in second] == [(True, 1.0)] * 4
    assert (cut.ended, cut.reward, cut.detail) == (True, 0.0, "sum 0 after 1 rewarded step")
    assert targets == [random.Random(seed).randrange(10) for seed in (7, 8)], "the seed is the group's"


def test_rewards_observations_and_actions_by_option(server):
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        going = await workers.step([(start.state, '{"guess": 9}', False), (start.state, '{"guess": "x"}', False)])
        return start, going, await workers.step([(going[0].state, '{"guess": 4}', False)])

    options = {"action": "json", "role": "", "observation": "<{hint}>", "reset": {"digits": 5}}
    start, going, (ended,) = run_server(work, url=server, reward="state.score", reward_range=[-1, 3], **options)
    assert start.observation == "<0-4?>"
    assert going[0].observation == "<->"
    assert going[1].observation.startswith("error: guess: Input should be a valid integer")
    assert (ended.reward, ended.detail) == (0.5, "state.score 1 after 2 rewarded steps")


def test_server_that_raises_or_rewards_beyond_the_range_fails_its_own_rollout(server):
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        return await workers.step([(start.state, action, True) for action in ("15", "4", "16")])

    raised, fine, beyond = run_server(work, url=server)
    assert raised.startswith("environment: RuntimeError: the server failed (EXECUTION_ERROR): the guess is unlucky")
    assert fine.reward == 1.0
    assert "the reward is 7, not in [0, 1]; environment.options.reward_range" in beyond


def test_irreproducible_reset_is_refused(server):
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        return await workers.step([(start.state, "4", False)])

    (turn,) = run_server(work, url=server, reset={"changing": True})
    assert "not reproducible at reset" in turn


def test_server_that_dies_costs_its_sessions_and_is_started_again():
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        going = await workers.step([(start.state, "2", False) for _ in range(3)])
        (own,) = await workers.step([(going[0].state, "13", False)])
        rest = await workers.step([(turn.state, "4", False) for turn in going[1:]])
        (after,) = await workers.step([(start.state, "4", False)])
        (running,) = servers()
        (host,) = [p for p in psutil.Process().children() if "kray.environments.host" in " ".join(p.cmdline())]
        host.send_signal(signal.SIGKILL)
        running.wait(10)
        return own, rest, after

    own, rest, after = run_server(work, **started("app"))
    assert own.startswith("environment: ConnectionError: the server ended (exit code 13)")
    assert all("ConnectionError" in turn for turn in rest)
    assert after.reward == 1.0


def test_session_that_hangs_is_timed_out_alone(server):
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        hanging, fine = await workers.step([(start.state, "14", False), (start.state, "4", False)])
        return hanging, fine

    hanging, fine = run_server(work, url=server, step_timeout_s=6.0)
    assert hanging == "environment: timeout after 6 s (environment.step_timeout_s) in step"
    assert fine.reward == 1.0


def test_server_that_hangs_is_replaced():
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        (before,) = servers()
        (hanging,) = await workers.step([(start.state, "17", False)])
        # Until it is known to hang, sessions are timed out like the first.
        while isinstance(after := (await workers.step([(start.state, "4", False)]))[0], str):
            assert "timeout" in after or "Connect" in after
        (now,) = servers()
        return hanging, after, before.pid, now.pid

    hanging, after, before, now = run_server(work, step_timeout_s=6.0, **started("blocking"))
    assert "timeout after 6 s" in hanging
    assert after.reward == 1.0
    assert before != now


def test_sessions_wait_for_room_at_the_server():
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        return await workers.step([(start.state, "4", False) for _ in range(8)])

    assert [turn.reward for turn in run_server(work, **started("narrow"))] == [1.0] * 8


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"url": "http://127.0.0.1:9"}, "ClientConnectorError: Cannot connect to host 127.0.0.1:9"),
        (
            {"command": "sh -c 'echo port {port} is taken; exit 4'"},
            r"ended \(exit code 4\); its last output: port \d+ is taken",
        ),
        ({"command": "sleep {port}", "start_timeout_s": 0.5}, "ServerError: the server was not ready after 0.5 s"),
    ],
)
def test_server_that_cannot_be_reached_or_started_ends_the_run(options, why):
    async def work(workers):
        await workers.begin([(prompt(4), 7)])

    with pytest.raises(KrayError, match=f"no session host could be started in 3 attempts: .*{why}"):
        run_server(work, **options)
