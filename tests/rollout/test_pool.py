"""Stories of the pool with real vLLM engines: weights are proved, work survives the death of engines."""

from __future__ import annotations

import asyncio
import os
import signal

import numpy as np
import pytest

from kray.config.schema import RolloutConfig
from kray.records import KrayError, RolloutTask, Sampling

pytestmark = pytest.mark.slow

PROBE = tuple(int(token) for token in np.random.default_rng(0).integers(2, 48, 24))


class PlainLearner:
    """The learner's side of a publication, in plain transformers."""

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def logprobs(self, tokens) -> np.ndarray:
        import torch

        with torch.no_grad():
            logits = self.model(torch.tensor([list(tokens)])).logits[0].double()
        return logits.log_softmax(-1)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()

    def shake(self, amount: float = 0.05) -> None:
        import torch

        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(amount * torch.randn_like(parameter))

    def publication(self, version: int):
        import ray

        from kray.rollout.pool import Published
        from kray.weights import FlatWeights

        state = [(name, parameter.detach()) for name, parameter in self.model.named_parameters()]
        return Published(version, ray.put(FlatWeights.pack(state)), PROBE, self.logprobs(PROBE))


def make_pool(folder, engines: int, label: str, lines: list[str] | None = None, **changes):
    from kray.rollout.engine import EngineSpec
    from kray.rollout.pool import Pool

    rollout = RolloutConfig(engines=engines, start_timeout_s=180, sync_timeout_s=60, **changes)
    spec = EngineSpec(
        model_path=str(folder),
        dtype="float32",
        context_tokens=128,
        max_sequences=16,
        cpus=1,
        gpus=0,
        kv_cache_gib=0.1,
        gpu_memory_share=0.0,
        eager=True,
        seed=0,
    )
    return Pool(rollout, spec, label, (lines if lines is not None else []).append)


def tasks(count: int, rollouts: int = 4, first_id: int = 0, max_tokens: int = 12, timeout_s: float = 120.0):
    rng = np.random.default_rng(1)
    for i in range(count):
        prompt = tuple(int(token) for token in rng.integers(2, 48, 8 + i % 5))
        sampling = Sampling(max_tokens=max_tokens, stop_token_ids=(1,))
        yield RolloutTask(first_id + i, f"p{i}", prompt, rollouts, 0, 1000 * i, 0, sampling, timeout_s, max_tokens)


async def outcomes(pool, orders):
    """Each task's outcome as it ends."""
    with pool.open() as session:
        session.submit(list(orders))
        while session.left:
            yield await session.next()


async def gather(pool, orders) -> dict[str, list]:
    return {outcome.task.prompt_id: outcome.rollouts async for outcome in outcomes(pool, list(orders))}


def same(one: dict[str, list], other: dict[str, list]) -> bool:
    """Whether the same tokens were sampled."""
    return one.keys() == other.keys() and all(
        all(np.array_equal(a.tokens, b.tokens) for a, b in zip(one[key], other[key], strict=True)) for key in one
    )


def test_rollouts_carry_the_learners_logprobs_and_the_same_seed_gives_the_same_rollouts(ray_local, policy):
    learner = PlainLearner(policy)

    async def story():
        pool = make_pool(policy, 1, f"parity-{policy.name}")
        pool.start()
        try:
            gap_before = await pool.publish(learner.publication(0))
            learner.shake()
            gap_after = await pool.publish(learner.publication(1))
            once = await gather(pool, tasks(12))
            await pool.publish(learner.publication(2))
            again = await gather(pool, tasks(12, first_id=100))
            return gap_before, gap_after, once, again
        finally:
            await pool.close()

    gap_before, gap_after, once, again = asyncio.run(story())
    assert gap_before < 1e-4
    assert gap_after < 1e-4
    assert same(once, again)
    for task in tasks(12):
        rollouts = once[task.prompt_id]
        assert [rollout.index for rollout in rollouts] == [0, 1, 2, 3]
        assert len({rollout.tokens.tobytes() for rollout in rollouts}) > 1, "all samples of a group are equal"
        for rollout in rollouts:
            expected = learner.logprobs([*task.prompt_tokens, *rollout.tokens.tolist()])[-len(rollout.tokens) :]
            np.testing.assert_allclose(rollout.logprobs, expected, atol=2e-4)
            assert rollout.policy_versions == ((1, 0, len(rollout.tokens)),)
            assert (rollout.finish_reason == "stop") == (rollout.tokens[-1] == 1)


def test_a_group_does_not_depend_on_how_it_was_split(ray_local, tied_policy):
    learner = PlainLearner(tied_policy)
    whole = list(tasks(3, rollouts=6))
    parts = []
    for task in whole:
        for first, count in ((0, 1), (1, 3), (4, 2)):
            changed = {"id": 10 * task.id + first, "first_index": first, "rollouts": count}
            parts.append(RolloutTask(**{name: getattr(task, name) for name in task.__slots__} | changed))

    async def story():
        pool = make_pool(tied_policy, 1, "split")
        pool.start()
        try:
            await pool.publish(learner.publication(0))
            once = await gather(pool, whole)
            pieces: dict[str, list] = {}
            async for outcome in outcomes(
                pool, [RolloutTask(**{n: getattr(t, n) for n in t.__slots__} | {"id": t.id + 1000}) for t in parts]
            ):
                pieces.setdefault(outcome.task.prompt_id, []).extend(outcome.rollouts)
            return once, {key: sorted(value, key=lambda r: r.index) for key, value in pieces.items()}
        finally:
            await pool.close()

    once, pieces = asyncio.run(story())
    assert same(once, pieces)


def test_killing_an_engine_in_the_middle_loses_and_repeats_nothing(ray_local, tied_policy):
    import ray

    learner = PlainLearner(tied_policy)
    orders = list(tasks(40, rollouts=8, max_tokens=100))
    lines: list[str] = []

    async def story():
        pool = make_pool(tied_policy, 2, "killed", lines)
        pool.start()
        try:
            await pool.publish(learner.publication(0))
            while pool.serving < 2:
                await asyncio.sleep(0.2)
            reference = await gather(pool, orders)
            victim = (await pool.engines[0].actor.start.remote())["pid"]
            seen = []
            async for outcome in outcomes(
                pool, [RolloutTask(**{n: getattr(t, n) for n in t.__slots__} | {"id": t.id + 1000}) for t in orders]
            ):
                if not seen:
                    os.kill(victim, signal.SIGKILL)
                seen.append(outcome)
            await pool._until(lambda: pool.serving == 2)  # it came back and proved its weights
            after = await gather(pool, tasks(10, first_id=5000))
            return (
                reference,
                seen,
                pool.deaths,
                pool.schedule,
                len(after),
                ray.get(pool.engines[0].actor.start.remote())["pid"] != victim,
            )
        finally:
            await pool.close()

    reference, seen, deaths, schedule, after, replaced = asyncio.run(story())
    assert deaths == 1
    assert replaced
    assert schedule.retried > 0, "the engine held nothing when it was killed"
    assert sorted(outcome.task.prompt_id for outcome in seen) == sorted(task.prompt_id for task in orders)
    assert all(len(outcome.rollouts) == 8 for outcome in seen)
    assert same(reference, {outcome.task.prompt_id: outcome.rollouts for outcome in seen})
    assert schedule.waiting == schedule.running == 0
    assert after == 10
    assert any("engine-0 lost" in line for line in lines)


def test_work_that_is_left_early_is_dropped_and_the_engine_takes_new_weights_at_once(ray_local, tied_policy):
    learner = PlainLearner(tied_policy)

    async def story():
        pool = make_pool(tied_policy, 1, "left")
        pool.start()
        try:
            await pool.publish(learner.publication(0))
            for version in range(1, 4):
                with pool.open() as session:
                    session.submit(list(tasks(60, rollouts=8, max_tokens=100, first_id=1000 * version)))
                    await session.next()
                await pool.publish(learner.publication(version))
            after = await gather(pool, tasks(5, first_id=9000))
            return after, pool.deaths, pool.schedule
        finally:
            await pool.close()

    after, deaths, schedule = asyncio.run(story())
    assert deaths == 0
    assert len(after) == 5
    assert all(rollout.policy_versions[0][0] == 3 for rollouts in after.values() for rollout in rollouts)
    assert schedule.waiting == schedule.running == 0


def test_an_engine_that_dies_while_it_takes_new_weights_is_replaced_and_proved(ray_local, tied_policy):
    learner = PlainLearner(tied_policy)

    async def story():
        pool = make_pool(tied_policy, 1, "dying")
        pool.start()
        try:
            await pool.publish(learner.publication(0))
            victim = (await pool.engines[0].actor.start.remote())["pid"]
            os.kill(victim, signal.SIGSTOP)  # it will be in the update when it dies
            learner.shake()
            publishing = asyncio.create_task(pool.publish(learner.publication(1)))
            await asyncio.sleep(0.5)
            os.kill(victim, signal.SIGKILL)
            gap = await publishing
            return gap, pool.deaths, await gather(pool, tasks(4))
        finally:
            await pool.close()

    gap, deaths, after = asyncio.run(story())
    assert gap < 1e-4
    assert deaths == 1
    assert {rollout.policy_versions[0][0] for rollouts in after.values() for rollout in rollouts} == {1}


def test_an_engine_that_serves_other_weights_than_the_learners_is_ended(ray_local, tied_policy):
    import dataclasses

    learner = PlainLearner(tied_policy)
    lines: list[str] = []

    async def story():
        pool = make_pool(tied_policy, 1, "liar", lines, max_restarts=1)
        pool.start()
        try:
            honest = learner.publication(0)
            learner.shake()
            wrong = dataclasses.replace(honest, logprobs=learner.logprobs(PROBE))
            await pool.publish(wrong)
        finally:
            await pool.close()

    with pytest.raises(KrayError, match=r"no engine is left.*not the learner's"):
        asyncio.run(story())
    assert sum("not the learner's" in line for line in lines) == 2


def test_a_prompt_that_no_engine_can_run_fails_alone_and_a_slow_task_is_given_up(ray_local, tied_policy):
    learner = PlainLearner(tied_policy)
    good, long, *_ = tasks(2)
    changed = {"id": 7, "prompt_id": "long", "prompt_tokens": (5,) * 500}
    long = RolloutTask(**{name: getattr(long, name) for name in long.__slots__} | changed)
    late = list(tasks(1, rollouts=1500, max_tokens=110, first_id=50, timeout_s=0.0))  # many seconds of work

    async def story():
        pool = make_pool(tied_policy, 1, "refused", max_attempts=1)
        pool.start()
        try:
            await pool.publish(learner.publication(0))
            first = {o.task.prompt_id: o async for o in outcomes(pool, [good, long])}
            second = [o async for o in outcomes(pool, late)]
            return first, second, pool.deaths
        finally:
            await pool.close()

    first, second, deaths = asyncio.run(story())
    assert len(first[good.prompt_id].rollouts) == 4
    assert "500" in first["long"].failure or "longer" in first["long"].failure
    assert deaths == 1
    assert "rollout.task_timeout_s" in second[0].failure
