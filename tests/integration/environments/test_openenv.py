"""Conversations with a real OpenEnv server; what happens when it fails, hangs or dies."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal

import psutil
import pytest
from openenv_python import APP, openenv_python

from kray.config.schema import EnvironmentConfig
from kray.environments.workers import EnvironmentWorkers
from kray.errors import KrayError
from kray.records import Prompt


def prompt(target: int | None = 4) -> Prompt:
    return Prompt("p", "" if target is None else json.dumps({"target": target}), "exact", "test", text="Guess: ")


def run_server(work, app: str = "app", step_timeout_s: float = 20.0, workers: int = 1, **options):
    options = {**({"app": f"guess_server:{app}"} if app else {}), "python": openenv_python(), "folder": str(APP), **options}

    async def go():
        settings = EnvironmentConfig("openenv", options=options, step_timeout_s=step_timeout_s, workers=workers)
        environment = EnvironmentWorkers(settings, start_timeout_s=120.0)
        try:
            return await asyncio.wait_for(work(environment), 150)
        finally:
            environment.close()

    return asyncio.run(go())


def servers() -> list[psutil.Process]:
    below = psutil.Process(os.getpid()).children(recursive=True)
    return [process for process in below if "uvicorn" in process.cmdline() and "-c" not in process.cmdline()]


def test_conversations_with_a_server():
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

    starts, first, second, cut, targets = run_server(work)
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
    assert not servers()


def test_rewards_observations_and_actions_by_option():
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        going = await workers.step([(start.state, '{"guess": 9}', False), (start.state, '{"guess": "x"}', False)])
        return start, going, await workers.step([(going[0].state, '{"guess": 4}', False)])

    options = {"action": "json", "role": "", "observation": "<{hint}>", "reset": {"digits": 5}}
    start, going, (ended,) = run_server(work, reward="state.score", reward_range=[-1, 3], **options)
    assert start.observation == "<0-4?>"
    assert going[0].observation == "<->"
    assert going[1].observation.startswith("error: guess: Input should be a valid integer")
    assert (ended.reward, ended.detail) == (0.5, "state.score 1 after 2 rewarded steps")


def test_server_that_raises_or_rewards_beyond_the_range_fails_its_own_rollout():
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        return await workers.step([(start.state, action, True) for action in ("15", "4", "16")])

    raised, fine, beyond = run_server(work)
    assert raised.startswith("environment: RuntimeError: the server failed (EXECUTION_ERROR): the guess is unlucky")
    assert fine.reward == 1.0
    assert "the reward is 7, not in [0, 1]; environment.options.reward_range" in beyond


def test_irreproducible_reset_is_refused():
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        return await workers.step([(start.state, "4", False)])

    (turn,) = run_server(work, reset={"changing": True})
    assert "not reproducible at reset" in turn


def test_server_that_dies_costs_its_sessions_and_is_started_again():
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        going = await workers.step([(start.state, "2", False) for _ in range(3)])
        (own,) = await workers.step([(going[0].state, "13", False)])
        rest = await workers.step([(turn.state, "4", False) for turn in going[1:]])
        (after,) = await workers.step([(start.state, "4", False)])
        (server,) = servers()
        server.send_signal(signal.SIGKILL)
        return own, rest, after

    own, rest, after = run_server(work)
    assert own.startswith("environment: ConnectionError: the server ended (exit code 13)")
    assert all("ConnectionError" in turn for turn in rest)
    assert after.reward == 1.0


def test_session_that_hangs_is_timed_out_alone():
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        hanging, fine = await workers.step([(start.state, "14", False), (start.state, "4", False)])
        return hanging, fine, len(servers())

    hanging, fine, running = run_server(work, step_timeout_s=6.0)
    assert hanging == "environment: timeout after 6 s (environment.step_timeout_s) in step"
    assert fine.reward == 1.0
    assert running == 1


def test_server_that_hangs_is_replaced():
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        (before,) = servers()
        (hanging,) = await workers.step([(start.state, "17", False)])
        # Until it is known to hang, sessions are timed out like the first.
        while isinstance(after := (await workers.step([(start.state, "4", False)]))[0], str):
            assert "timeout" in after or "ConnectionError" in after
        (now,) = servers()
        return hanging, after, before.pid, now.pid

    hanging, after, before, now = run_server(work, app="blocking", step_timeout_s=6.0)
    assert "timeout after 6 s" in hanging
    assert after.reward == 1.0
    assert before != now


def test_sessions_wait_for_room_at_the_server():
    async def work(workers):
        (start,) = await workers.begin([(prompt(4), 7)])
        return await workers.step([(start.state, "4", False) for _ in range(8)])

    assert [turn.reward for turn in run_server(work, app="narrow")] == [1.0] * 8


def test_server_by_address_and_one_that_cannot_be_reached():
    async def work(workers):
        await workers.begin([(prompt(4), 7)])
        (server,) = servers()
        address = f"http://127.0.0.1:{server.cmdline()[-1]}"
        other = EnvironmentWorkers(EnvironmentConfig("openenv", options={"url": address}, step_timeout_s=20.0))
        try:
            (start,) = await other.begin([(prompt(4), 7)])
            return await other.step([(start.state, "4", False)])
        finally:
            other.close()

    assert [turn.reward for turn in run_server(work)] == [1.0]

    async def begin(workers):
        await workers.begin([(prompt(4), 7)])

    with pytest.raises(KrayError, match=r"no session host could be started in 3 attempts: ClientConnectorError"):
        run_server(begin, app="", python="", folder="", url="http://127.0.0.1:9")
    with pytest.raises(KrayError, match=r'ServerError: the server ended \(exit code \d\).*Attribute "nothing" not found'):
        run_server(begin, app="nothing")
