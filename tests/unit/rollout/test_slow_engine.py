"""An engine that samples slowly is healthy; one that samples nothing for rollout.task_timeout_s is lost."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from kray.config.schema import RolloutConfig
from kray.records import RolloutTask, Sampling
from kray.rollout import engine_supervisor
from kray.rollout.engine_supervisor import EngineLost, EngineSupervisor
from kray.rollout.outcome import EngineReport
from kray.rollout.pool_state import PooledEngine, PoolState
from kray.rollout.scheduler import Schedule

TIMEOUT_S, RESPONSE_TOKENS = 50.0, 32_768
# Tokens of each reply, of which one comes every 40 s.
REPLY_TOKENS = 16


class SlowActor:
    """Replies to each `collect` after `pause_s` seconds of a clock of its own, with some more tokens of a long response."""

    def __init__(self, clock: Clock, pause_s: float):
        self.clock, self.pause_s, self.silent = clock, pause_s, False
        self.collect = SimpleNamespace(remote=self._collect)
        self.submit = SimpleNamespace(remote=lambda tasks: None)

    async def _collect(self, wait_s: float) -> EngineReport:
        self.clock.now_s += self.pause_s
        return EngineReport(busy_s=self.pause_s, sampled=0 if self.silent else REPLY_TOKENS)


class Clock:
    """A monotonic clock that stands still between two replies."""

    now_s = 1000.0

    def __getattr__(self, name: str):
        return (lambda: self.now_s) if name == "monotonic" else getattr(time, name)


@pytest.fixture
def supervised(monkeypatch):
    """Return (supervisor, actor) of an engine that works on one task."""
    clock = Clock()
    for module in (engine_supervisor, engine_supervisor.event_set.__globals__):
        target = module if isinstance(module, dict) else vars(module)
        monkeypatch.setitem(target, "time", clock)
    engine = PooledEngine("engine-0", max_restarts=5)
    pool = PoolState(RolloutConfig(task_timeout_s=TIMEOUT_S), None, "x", Schedule(3), {"engine-0": engine})
    engine.actor = actor = SlowActor(clock, pause_s=0.8 * TIMEOUT_S)
    pool.schedule.engine_up("engine-0", None)
    sampling = Sampling(max_tokens=RESPONSE_TOKENS, stop_token_ids=(1,))
    pool.schedule.submit([RolloutTask(0, "p", (5, 6), 1, 0, 0, 0, sampling, TIMEOUT_S, RESPONSE_TOKENS)])
    pool.dispatch()
    return EngineSupervisor(pool, engine), actor


def test_a_response_of_32k_tokens_does_not_end_a_slow_engine(supervised):
    """It takes 1,600 times the timeout."""
    supervisor, actor = supervised
    begun = actor.clock.now_s

    async def generate():
        for _ in range(RESPONSE_TOKENS // REPLY_TOKENS):
            await supervisor._collect_report()

    asyncio.run(generate())
    assert actor.clock.now_s - begun > 1_600 * TIMEOUT_S
    assert supervisor.pool.schedule.load("engine-0") == 1
    assert supervisor.pool.losses == 0


def test_an_engine_without_tokens_is_lost_after_the_timeout(supervised):
    supervisor, actor = supervised

    async def generate():
        await supervisor._collect_report()
        actor.silent = True
        await supervisor._collect_report()
        with pytest.raises(EngineLost, match=r"sampled no token for 1 tasks within rollout.task_timeout_s \(50 s\)"):
            await supervisor._collect_report()

    asyncio.run(generate())
