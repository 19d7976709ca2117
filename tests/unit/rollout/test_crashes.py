"""A prompt that crashes every engine that gets it is data: it fails after some attempts, and the run goes on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from kray.config.schema import RolloutConfig
from kray.records import RolloutTask, Sampling
from kray.rollout.crashes import Crashes
from kray.rollout.engine_supervisor import EngineSupervisor
from kray.rollout.health import State
from kray.rollout.outcome import TaskOutcome
from kray.rollout.pool_state import PooledEngine, PoolState
from kray.rollout.scheduler import Schedule


class FakePool:
    """A pool of engines that exit as soon as they get a task of some prompts, and else finish what they get."""

    def __init__(self, engines: int, deadly: set[str], max_restarts: int = 5, broken: str = ""):
        self.deadly, self.broken, self.lost = deadly, broken, 0
        self.outcomes: asyncio.Queue[TaskOutcome] = asyncio.Queue()
        names = [f"engine-{i}" for i in range(engines)]
        rollout, spec = RolloutConfig(engines=engines, max_restarts=max_restarts), SimpleNamespace(max_sequences=16)
        known = {name: PooledEngine(name, max_restarts) for name in names}
        self.state = PoolState(rollout, spec, "fake", Schedule(rollout.max_attempts), known)
        self.supervisors = {name: EngineSupervisor(self.state, engine) for name, engine in known.items()}
        self.sent: list[tuple[str, list[RolloutTask]]] = []
        for name in names:
            self.start(name)

    def start(self, name: str) -> None:
        engine = self.state.engines[name]
        if engine.health.state is State.RESTING:
            engine.health.mark_needed()
        engine.health.mark_started()
        engine.health.mark_proved(0)
        submit = SimpleNamespace(remote=lambda tasks: self.sent.append((name, tasks)))
        engine.actor = SimpleNamespace(submit=submit)
        self.state.schedule.engine_up(name, 32 if len(self.state.engines) > 1 else None)
        self.state.dispatch()

    def run(self, tasks: list[RolloutTask]) -> dict[int, TaskOutcome]:
        """Return the outcomes of all tasks by their ids."""
        self.state.waiting = {task.id: self.outcomes for task in tasks}
        self.state.schedule.submit(tasks)
        self.state.dispatch()
        while self.sent:
            name, got = self.sent.pop(0)
            if not self.state.schedule.is_up(name):
                continue
            if name == self.broken or any(task.prompt_id in self.deadly for task in got):
                self.lose(name)
                continue
            for task in got:
                if self.state.schedule.done(task.id, name, 0.0):
                    self.state.deliver(TaskOutcome(task, []))
            self.state.dispatch()
        found = [self.outcomes.get_nowait() for _ in range(self.outcomes.qsize())]
        return {outcome.task.id: outcome for outcome in found}

    def lose(self, name: str) -> None:
        self.lost += 1
        self.state.engines[name].actor = None
        self.sent = [(engine, tasks) for engine, tasks in self.sent if engine != name]
        if self.supervisors[name]._handle_engine_loss("the process died") is not None:
            self.start(name)


def step_of(prompts: list[str], parts: int, first: int = 0) -> list[RolloutTask]:
    pairs = [(prompt, part) for prompt in prompts for part in range(parts)]
    return [
        RolloutTask(first + i, prompt, (1,), 2, 0, 2 * part, i, Sampling(16), 60.0, 10.0)
        for i, (prompt, part) in enumerate(pairs)
    ]


@pytest.mark.parametrize("engines", [1, 2, 4])
def test_prompts_that_crash_engines_fail_and_use_up_no_restarts(engines):
    deadly = {f"bad-{i}" for i in range(6)}
    pool = FakePool(engines, deadly)
    for step, bad in enumerate(sorted(deadly)):
        prompts = [f"fine-{i}" for i in range(6)] + [bad]
        tasks = step_of(prompts, 4, first=100 * step)
        before = pool.lost
        found = pool.run(tasks)
        assert found.keys() == {task.id for task in tasks}, "a task has no outcome"
        failed = {outcome.task.prompt_id for outcome in found.values() if outcome.failure}
        assert failed == {bad}, "prompts beside one that crashes engines failed, too"
        assert pool.lost - before <= 2 * engines + 1, "more engines were lost than it takes to identify a prompt"
        reasons = {outcome.failure for outcome in found.values() if outcome.failure}
        assert reasons == {"failed 3 times, the last time: the process died"}
        states = [engine.health.state for engine in pool.state.engines.values()]
        assert states == [State.SERVING] * engines, "the prompts used up an engine's restarts"


def test_engines_that_finish_nothing_use_up_their_restarts():
    """Where every prompt crashes them, the engines are at fault."""
    pool = FakePool(2, {f"p{i}" for i in range(40)})
    pool.run(step_of([f"p{i}" for i in range(40)], 2))
    assert {engine.health.state for engine in pool.state.engines.values()} == {State.GONE}
    assert pool.lost == 2 * (5 + 1)


@pytest.mark.parametrize("engines", [2, 3, 4])
def test_an_engine_that_dies_with_every_task_uses_up_its_restarts_beside_others(engines):
    pool = FakePool(engines, set(), broken="engine-0")
    for step in range(12):
        pool.run(step_of([f"fine-{i}" for i in range(8)], 4, first=100 * step))
    states = {name: engine.health.state for name, engine in pool.state.engines.items()}
    assert states.pop("engine-0") is State.GONE
    assert set(states.values()) == {State.SERVING}
    assert pool.lost == 5 + 1


def test_each_loss_is_excused_once():
    crashes = Crashes()
    losses = [crashes.lost(name) for name in ("a", "b", "a")]
    crashes.finished("a")
    crashes.identified("bad", losses[:2], "a")
    assert crashes.take_excused() == ["a", "b"]
    assert crashes.take_excused() == []
    crashes.finished("b")
    crashes.identified("other", losses, "a")
    assert crashes.take_excused() == [], "the engine has finished nothing since the prompt before"
    crashes.finished("a")
    crashes.identified("other", losses, "a")
    assert crashes.take_excused() == ["a"]
