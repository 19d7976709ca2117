"""Stories of the pool with real vLLM engines: weights are proved, work survives the death of engines."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal

import numpy as np
import pytest
from pool_stories import PROBE, PlainLearner, gather, make_pool, outcomes, same, tasks

from kray.records import KrayError, RolloutTask, Sampling

pytestmark = pytest.mark.slow


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


def test_new_weights_come_while_rollouts_run_and_none_is_lost_or_mislabelled(ray_local, tied_policy):
    """The keys and values of earlier tokens stay those of the old weights, so the logprobs can be told to the digit."""
    import copy

    import torch

    learner = PlainLearner(tied_policy)
    old = copy.deepcopy(learner.model)
    orders = [dataclasses.replace(t, sampling=Sampling(max_tokens=100)) for t in tasks(12, rollouts=2)]
    first = list(tasks(1, first_id=500, max_tokens=10))

    async def story():
        pool = make_pool(tied_policy, 1, "overlap")
        pool.start()
        try:
            await pool.publish(learner.publication(3))
            learner.shake(0.01)
            publication = learner.publication(4)
            with pool.open() as session:
                session.submit([dataclasses.replace(task, policy_version=3) for task in [*first, *orders]])
                ended = [await session.next()]
                gap = await pool.publish(publication)
                running = pool.schedule.running
                while session.left:
                    ended.append(await session.next())
            return ended, gap, running, pool.deaths
        finally:
            await pool.close()

    ended, gap, running, deaths = asyncio.run(story())
    assert gap < 1e-4
    assert deaths == 0
    assert running > 0, "everything had ended before the new weights came"
    assert len(ended) == 13
    prompts = {task.prompt_id: list(task.prompt_tokens) for task in orders}
    crossing = [r for o in ended for r in o.rollouts if len(r.policy_versions) > 1 and len(r.tokens) == 100]
    assert crossing
    for rollout in crossing:
        (v0, _, end), (v1, start, last) = rollout.policy_versions
        assert (v0, v1, end, last) == (3, 4, start, 100)
        tokens = torch.tensor([prompts[rollout.prompt_id] + rollout.tokens.tolist()])
        known = tokens.shape[1] - 100 + end - 1  # the last token under the old weights is read by the new ones
        with torch.no_grad():
            before = old(tokens[:, :known], use_cache=True)
            after = learner.model(tokens[:, known:], past_key_values=before.past_key_values, use_cache=True)
        logits = torch.cat([before.logits, after.logits], 1)[0].double()
        found = logits.log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])[-100:, 0].numpy()
        np.testing.assert_allclose(rollout.logprobs, found, atol=2e-4)


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
