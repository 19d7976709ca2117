"""Engines and a learner on cards that hold one of them at a time: the rules, and whole runs in which parties die."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from shared_cards import Cards, ClocklessLoop, RecordedActors, RecordedLearners, rollout_config
from tiny_pool import tasks

from kray.driver.colocation import Colocation
from kray.errors import InfrastructureError
from kray.rollout import pool_state
from kray.rollout.engine_spec import EngineSpec
from kray.rollout.health import State
from kray.rollout.pool import Pool
from kray.rollout.sharing import Held, Phase, Place, Turns
from kray.rollout.sharing_supervisor import SharingSupervisor
from kray.rollout.sleep import EngineSleep, Memory

EVENTS = {
    "request_learner": (Phase.WAKE, Phase.GENERATE),
    "engines_asleep": (Phase.SLEEP,),
    "learner_entered": (Phase.ENTER,),
    "learner_leaves": (Phase.LEARN,),
    "learner_stays": (Phase.LEAVE,),
    "learner_left": (Phase.LEAVE,),
    "engines_serve": (Phase.WAKE,),
}
ENGINE_EVENTS = {
    "engine_starts": (Phase.WAKE, Phase.GENERATE),
    "engine_wakes": (Phase.WAKE, Phase.GENERATE),
    "engine_serves": (Phase.WAKE, Phase.GENERATE),
    "engine_asleep": (Phase.SLEEP,),
}


class AnyEvents(RuleBasedStateMachine):
    """Any order of events: each is accepted where the page says so, refused elsewhere, and a refusal changes nothing."""

    @initialize()
    def begin(self):
        self.turns = Turns()

    @rule(event=st.sampled_from(sorted(EVENTS)))
    def event(self, event):
        before = (self.turns.phase, self.turns.learner, dict(self.turns.engines))
        try:
            getattr(self.turns, event)()
            assert before[0] in EVENTS[event]
        except ValueError:
            assert before == (self.turns.phase, self.turns.learner, self.turns.engines)
        self.check()

    @rule(event=st.sampled_from(sorted(ENGINE_EVENTS)), name=st.sampled_from(["engine-0", "engine-1"]))
    def engine_event(self, event, name):
        before = (self.turns.phase, dict(self.turns.engines))
        try:
            getattr(self.turns, event)(name)
            assert before[0] in ENGINE_EVENTS[event]
        except ValueError:
            assert before == (self.turns.phase, self.turns.engines)
        self.check()

    @rule(name=st.sampled_from(["engine-0", "engine-1"]))
    def engine_lost(self, name):
        self.turns.engine_lost(name)
        assert self.turns.engines[name] is Held.NOTHING
        self.check()

    @rule()
    def learner_lost(self):
        self.turns.learner_lost()
        # What is to be done before new ranks start.
        assert self.turns.phase in (Phase.SLEEP, Phase.ENTER)
        self.check()

    @precondition(lambda self: self.turns.phase is Phase.SLEEP)
    @rule()
    def all_go_to_sleep(self):
        for name, held in list(self.turns.engines.items()):
            if held in (Held.AWAKE, Held.SERVING):
                with pytest.raises(ValueError, match="still holds memory"):
                    self.turns.engines_asleep()
                self.turns.engine_asleep(name)
        self.turns.engines_asleep()

    def check(self):
        holding = [held for held in self.turns.engines.values() if held in (Held.AWAKE, Held.SERVING)]
        assert not (holding and self.turns.learner is Place.DEVICE)
        assert self.turns.all_asleep is not bool(holding)


TestAnyEvents = AnyEvents.TestCase
TestAnyEvents.settings = settings(max_examples=60, stateful_step_count=30)


# -- whole runs -------------------------------------------------------------------------------------------------------

SPEC = EngineSpec("x", "float32", 128, 16, 1, 0, 0.1, 0.0, True, 0, sleeps=True)


class Run:
    """Trains as the driver does, with recorded engines and ranks."""

    def __init__(self, cards: Cards, ranks: int, steps: int):
        self.cards, self.steps, self.done, self.losses = cards, steps, 0, 0
        self.learners, rollout = RecordedLearners(cards, ranks), rollout_config(ranks)
        self.colocation = Colocation(rollout, self.learners)
        sharing = replace(self.colocation.sharing, options=lambda name: {"card": int(name[-1])})
        self.pool = self.colocation.pool = Pool(rollout, SPEC, "shared", sharing)
        self.version = -1
        # Engines that served after each hand-over.
        self.served: list[int] = []

    async def train(self) -> None:
        while True:
            try:
                await self.colocation.learners_turn()
                await self.learners.start()
                self.colocation.learner_started()
                await self.serve()
                while self.done < self.steps:
                    await self.generate()
                    await self.learners.update()
                    await self.serve()
                    self.done += 1
                # What an export at the end does.
                await self.colocation.learners_turn()
                break
            except InfrastructureError:
                self.losses += 1
                self.learners.kill()
                self.colocation.learner_lost()
        await self.pool.close()

    async def serve(self) -> None:
        """Serve new weights; a loss of the learner is noticed while engines load, as by the driver's watch."""
        self.version += 1
        published = await self.learners.publication(self.version)
        serving = asyncio.ensure_future(self.colocation.hand_over(published))
        while not serving.done():
            await asyncio.wait({serving}, timeout=2.0)
            if self.learners.rank.dead and not serving.done():
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
                raise InfrastructureError("the learner was lost while engines loaded")
        serving.result()
        self.served.append(self.pool.serving)

    async def generate(self) -> None:
        work = [replace(task, policy_version=self.version) for task in tasks(4, 2, first_id=100 * self.version)]
        with self.pool.open() as session:
            session.submit(work)
            while session.left:
                outcome = await session.next()
                assert not outcome.failure
                assert all(r.policy_versions[0][0] == self.version for r in outcome.rollouts)
                await self.learners._called("watched")


def run(ranks: int, steps: int, deaths: dict[str, int], kills: dict[int, str] | None = None) -> Run:
    cards, loop = Cards(deaths, kills), ClocklessLoop()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SharingSupervisor, "actor_class", RecordedActors(cards))
        patched.setattr(pool_state.ray, "kill", lambda actor: actor.kill())

        async def train() -> Run:
            made = Run(cards, ranks, steps)
            await asyncio.wait_for(made.train(), 1e4)
            return made

        try:
            return loop.run_until_complete(train())
        finally:
            loop.close()


def test_a_step_has_this_order():
    done = run(1, 2, {})
    calls = [call for call in done.cards.log if call[1] not in ("watched", "wake")]
    start = calls.index(("learner", "update"))
    step = calls[start : calls.index(("learner", "update"), start + 1)]
    assert step == [
        ("learner", "update"),
        ("learner", "weights"),
        ("learner", "leave_device"),
        ("engine-0", "wake_weights"),
        ("engine-0", "update"),
        ("engine-0", "submit"),
        ("engine-0", "generate"),
        ("engine-0", "sleep"),
        ("learner", "enter_device"),
    ]
    # Learner and engine start one after the other.
    assert calls[:4] == [
        ("learner", "start"),
        ("learner", "weights"),
        ("learner", "leave_device"),
        ("engine-0", "start"),
    ]
    assert not done.cards.errors


@settings(max_examples=100)
@given(
    ranks=st.integers(1, 2),
    learner=st.none() | st.integers(0, 40),
    engines=st.lists(st.none() | st.integers(0, 25), min_size=2, max_size=2),
    kills=st.dictionaries(st.integers(0, 30), st.sampled_from(["engine-0", "engine-1"]), max_size=2),
)
def test_runs_end_whoever_dies_in_whatever_phase(ranks, learner, engines, kills):
    deaths = {"learner": learner, "engine-0": engines[0], "engine-1": engines[1]}
    done = run(ranks, 3, {party: call for party, call in deaths.items() if call is not None}, kills)
    assert done.done == 3
    assert not done.cards.errors
    assert done.losses == int(learner is not None and "learner" not in done.cards.deaths)
    assert done.colocation.turns.learner is Place.DEVICE


def test_an_engine_that_dies_while_it_sleeps_starts_when_the_learner_is_done():
    calls = [call for call in run(1, 2, {}).cards.log if call[0] == "learner"]
    for number, (_, method) in enumerate(calls):
        if method == "watched":
            continue
        done = run(1, 2, {}, {number: "engine-0"})
        assert not done.cards.errors
        assert done.done == 2
        log = [call for call in done.cards.log if call[1] in ("start", "leave_device")]
        starts = [i for i, call in enumerate(log) if call == ("engine-0", "start")]
        assert all(log[i - 1] == ("learner", "leave_device") for i in starts)


def test_a_hand_over_waits_for_all_engines():
    assert run(2, 3, {}).served[1:] == [2, 2, 2]


def test_every_phase_is_hit_by_a_death():
    """The calls at which parties die above are those of all phases."""
    for party, most in (("learner", 40), ("engine-0", 25)):
        hit = set()
        for call in range(most):
            cards = run(1, 3, {party: call}).cards
            if party not in cards.deaths:
                hit.add([method for name, method in cards.log if name == party][call])
        wanted = {"start", "update", "weights", "leave_device", "enter_device", "watched"}
        assert hit >= (
            wanted if party == "learner" else {"start", "update", "submit", "sleep", "wake_weights", "generate"}
        )


# -- one engine -------------------------------------------------------------------------------------------------------


def test_an_engine_refuses_what_vllm_would_compute_from_freed_memory():
    sleep = EngineSleep()
    with pytest.raises(RuntimeError, match="2 unfinished tasks"):
        sleep.sleep(2)
    sleep.sleep(0)
    for work in (lambda: sleep.sleep(0), sleep.loaded, sleep.wake_cache, lambda: sleep.require(Memory.AWAKE)):
        with pytest.raises(RuntimeError, match="asleep"):
            work()
    sleep.wake()
    with pytest.raises(RuntimeError, match="but for its weights"):
        sleep.wake_cache()
    sleep.loaded()
    assert sleep.lacks_cache
    with pytest.raises(RuntimeError, match="but for its keys"):
        sleep.require(Memory.AWAKE)
    sleep.wake_cache()
    # New weights for an engine that is awake.
    sleep.loaded()
    sleep.require(Memory.AWAKE)


def test_an_engine_that_wakes_may_be_put_to_sleep_again():
    sleep = EngineSleep()
    for stages in ((), (sleep.wake,), (sleep.wake, sleep.loaded)):
        if stages:
            for stage in stages:
                stage()
        sleep.sleep(0)
        assert sleep.memory is Memory.ASLEEP


def test_health_of_an_engine_that_sleeps():
    from kray.rollout.health import Health

    health = Health(1)
    with pytest.raises(ValueError, match="resting cannot sleep"):
        health.mark_asleep()
    health.mark_needed()
    health.mark_started()
    health.mark_proved(3)
    health.mark_asleep()
    assert health.state is State.ASLEEP
    with pytest.raises(ValueError, match="asleep cannot become serving"):
        health.mark_proved(4)
    health.mark_awake()
    health.mark_proved(4)
    assert health.serving


def test_vllm_is_asked_to_sleep_on_a_gpu_alone():
    assert "enable_sleep_mode" not in SPEC.vllm_options()
    assert replace(SPEC, gpus=1).vllm_options()["enable_sleep_mode"] is True
    assert "enable_sleep_mode" not in replace(SPEC, gpus=1, sleeps=False).vllm_options()
