"""The spare process takes the place of an engine that is lost, is used once, and is prepared again when all serve."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from kray.config import load_config
from kray.config.schema import RolloutConfig
from kray.errors import ConfigError
from kray.rollout import engine_supervisor
from kray.rollout.engine import Engine
from kray.rollout.engine_supervisor import EngineSupervisor
from kray.rollout.health import State
from kray.rollout.pool_state import PooledEngine, PoolState, Published
from kray.rollout.scheduler import Schedule
from kray.rollout.spare import Spare


class Reply:
    """What an actor's method returns at once, and what is awaited of it."""

    def __init__(self, comes: bool):
        self.comes = comes

    def __await__(self):
        if not self.comes:
            yield from asyncio.get_running_loop().create_future().__await__()
        return {"process": {"pid": 7}}


class Actor:
    """An actor that records its calls, and answers pings or does not."""

    def __init__(self, answers: bool = True):
        self.calls: list[str] = []
        self.answers = answers

    def __getattr__(self, method: str):
        def remote(*_):
            self.calls.append(method)
            return Reply(self.answers or method != "ping")

        return SimpleNamespace(remote=remote)


@pytest.fixture
def supervised(monkeypatch):
    """Return a function of the spare that returns the supervisor of an engine that starts, and what was killed."""
    killed: list[Actor] = []
    monkeypatch.setattr("kray.rollout.pool_state.ray", SimpleNamespace(kill=killed.append))
    monkeypatch.setattr(engine_supervisor, "RESPONSE_TIMEOUT_S", 0.05)

    def make(spare: Spare | None):
        engine = PooledEngine("engine-0", max_restarts=5)
        engine.needed = True
        engine.health.mark_needed()
        spec = SimpleNamespace(max_sequences=4)
        pool = PoolState(RolloutConfig(), spec, "x", Schedule(3), {"engine-0": engine}, spare=spare)
        return EngineSupervisor(pool, engine), killed

    return make


def test_the_process_is_prepared_once_used_once_and_numbered():
    made: list[int] = []
    spare = Spare(lambda number: made.append(number) or Actor())
    assert (spare.take(), spare.waiting) == (None, False)
    spare.prepare()
    spare.prepare()
    assert (made, spare.waiting) == ([0], True)
    first = spare.take()
    assert (spare.take(), spare.waiting) == (None, False)
    spare.prepare()
    assert made == [0, 1]
    assert spare.take() is not first


def test_a_lost_engine_starts_in_the_spare_process(supervised):
    actor = Actor()
    spare = Spare(lambda _: actor)
    spare.prepare()
    supervisor, killed = supervised(spare)
    assert asyncio.run(supervisor._start_actor())
    assert actor.calls == ["ping", "begin", "start"]
    assert (supervisor.engine.actor, supervisor.engine.health.state) == (actor, State.STALE)
    assert (killed, spare.waiting) == ([], False)
    assert supervisor._process == {"pid": 7}


def test_a_spare_that_does_not_answer_is_ended_and_another_process_started(supervised, monkeypatch):
    silent = Actor(answers=False)
    spare = Spare(lambda _: silent)
    spare.prepare()
    supervisor, killed = supervised(spare)
    fresh = Actor()

    async def place():
        supervisor.engine.actor = fresh
        return True

    monkeypatch.setattr(supervisor, "_place_actor", place)
    assert asyncio.run(supervisor._start_actor())
    assert killed == [silent]
    assert "begin" not in silent.calls
    assert fresh.calls == ["start"]


def test_another_is_prepared_when_all_engines_serve(supervised):
    made: list[int] = []
    supervisor, _ = supervised(Spare(lambda number: made.append(number) or Actor()))
    supervisor.engine.health.mark_started()
    assert made == []
    supervisor._begin_serving(Published(0, None, "", (), None))
    assert made == [0]


def test_an_engine_that_waits_imports_first_and_loads_when_told(monkeypatch):
    loaded, imported = threading.Event(), threading.Event()

    class Waiting(Engine):
        def _make_engine(self):
            imported.set()
            self._begun.wait()
            loaded.set()
            raise RuntimeError("no model in this test")

    engine = Waiting(SimpleNamespace(parts=1), waits=True)
    assert imported.wait(10.0)
    assert not loaded.is_set()
    engine.begin()
    assert loaded.wait(10.0)


def test_only_engines_on_cpu_have_one(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: x}\nrollout: {spare: true}\n")
    assert load_config(file).rollout.spare
    with pytest.raises(ConfigError, match=r"rollout.spare prepares engines on CPU alone"):
        load_config(file, ["rollout.gpus_per_engine=1"])
