"""A pool of real vLLM engines: weights are proved, and tasks survive the loss of engines."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import os
import signal

import numpy as np
import pytest
from logged_lines import logged_lines
from tiny_pool import PROBE, PlainLearner, RunningPool, gather, make_pool, outcomes, same, tasks

from kray.errors import KrayError
from kray.records import Sampling
from kray.rollout.engine_supervisor import EngineSupervisor


@pytest.fixture(scope="module")
def shared(ray_local, tied_policy):
    """Two engines for all tests of this file that leave their pool running."""
    shared = RunningPool(tied_policy, 2, "shared")
    yield shared
    shared.close()


async def parity(pool, learner, publication, fresh):
    """Gaps of two publications, and the same tasks under two versions of the same weights."""
    gap_before = await pool.publish(publication())
    learner.shake()
    last = publication()
    gap_after = await pool.publish(last)
    once = await gather(pool, fresh(tasks(12)))
    await pool.publish(publication())
    again = await gather(pool, fresh(tasks(12)))
    return gap_before, gap_after, once, again, last.version


def check_parity(learner, gap_before, gap_after, once, again, version) -> None:
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
            assert rollout.policy_versions == ((version, 0, len(rollout.tokens)),)
            assert (rollout.finish_reason == "stop") == (rollout.tokens[-1] == 1)


@pytest.mark.smoke
def test_rollouts_have_the_learners_logprobs(shared):
    found = shared.run(parity(shared.pool, shared.learner, shared.publication, shared.fresh))
    check_parity(shared.learner, *found)


def test_split_does_not_change_a_group(shared):
    whole = list(tasks(3, rollouts=6))
    parts = [
        dataclasses.replace(task, first_index=first, rollouts=count)
        for task in whole
        for first, count in ((0, 1), (1, 3), (4, 2))
    ]

    async def scenario():
        await shared.pool.publish(shared.publication())
        once = await gather(shared.pool, shared.fresh(whole))
        pieces: dict[str, list] = {}
        async for outcome in outcomes(shared.pool, shared.fresh(parts)):
            pieces.setdefault(outcome.task.prompt_id, []).extend(outcome.rollouts)
        return once, {key: sorted(value, key=lambda r: r.index) for key, value in pieces.items()}

    once, pieces = shared.run(scenario())
    assert same(once, pieces)


def test_leaving_a_session_cancels_its_tasks(shared):
    pool, losses = shared.pool, shared.pool.losses

    async def scenario():
        for _ in range(3):
            with pool.open() as session:
                session.submit(shared.fresh(tasks(60, rollouts=8, max_tokens=100)))
                await session.next()
            last = shared.publication()
            await pool.publish(last)
        return await gather(pool, shared.fresh(tasks(5))), last.version

    after, version = shared.run(scenario())
    assert pool.losses == losses
    assert len(after) == 5
    assert all(rollout.policy_versions[0][0] == version for rollouts in after.values() for rollout in rollouts)
    assert pool.schedule.waiting == pool.schedule.running == 0


def test_weights_change_while_rollouts_run(shared):
    """The keys and values of earlier tokens stay those of the old weights, so the logprobs can be computed exactly."""
    import torch

    pool, learner, losses = shared.pool, shared.learner, shared.pool.losses
    old = copy.deepcopy(learner.model)
    orders = [dataclasses.replace(t, sampling=Sampling(max_tokens=100)) for t in tasks(24, rollouts=2)]
    first = [dataclasses.replace(t, prompt_id="first") for t in tasks(1, max_tokens=10)]

    async def scenario():
        before = shared.publication()
        await pool.publish(before)
        learner.shake(0.01)
        publication = shared.publication()
        with pool.open() as session:
            session.submit(shared.fresh([*first, *orders], policy_version=before.version))
            ended = [await session.next()]
            gap = await pool.publish(publication)
            running = pool.schedule.running
            while session.left:
                ended.append(await session.next())
        return ended, gap, running, before.version

    ended, gap, running, version = shared.run(scenario())
    assert gap < 1e-4
    assert pool.losses == losses
    assert running > 0, "everything had ended before the new weights came"
    assert len(ended) == 25
    prompts = {task.prompt_id: list(task.prompt_tokens) for task in orders}
    crossing = [r for o in ended for r in o.rollouts if len(r.policy_versions) > 1 and len(r.tokens) == 100]
    assert crossing
    for rollout in crossing:
        (v0, _, end), (v1, start, last) = rollout.policy_versions
        assert (v0, v1, end, last) == (version, version + 1, start, 100)
        tokens = torch.tensor([prompts[rollout.prompt_id] + rollout.tokens.tolist()])
        known = tokens.shape[1] - 100 + end - 1  # the last token under the old weights is read by the new ones
        with torch.no_grad():
            before = old(tokens[:, :known], use_cache=True)
            after = learner.model(tokens[:, known:], past_key_values=before.past_key_values, use_cache=True)
        logits = torch.cat([before.logits, after.logits], 1)[0].double()
        found = logits.log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])[-100:, 0].numpy()
        np.testing.assert_allclose(rollout.logprobs, found, atol=2e-4)


def test_engine_death_requeues_rollouts(shared):
    pool, losses, retried = shared.pool, shared.pool.losses, shared.pool.schedule.retried
    orders = list(tasks(24, rollouts=8, max_tokens=100))

    async def scenario():
        await pool.publish(shared.publication())
        await shared.all_serve()
        reference = await gather(pool, shared.fresh(orders))
        victim = (await pool.engines[0].actor.start.remote())["pid"]
        seen = []
        async for outcome in outcomes(pool, shared.fresh(orders)):
            if not seen:
                os.kill(victim, signal.SIGKILL)
            seen.append(outcome)
        await shared.all_serve()  # it came back and proved its weights
        replaced = (await pool.engines[0].actor.start.remote())["pid"] != victim
        return reference, seen, replaced, await gather(pool, shared.fresh(tasks(10)))

    with logged_lines() as lines:
        reference, seen, replaced, after = shared.run(scenario())
    assert pool.losses == losses + 1
    assert replaced
    assert pool.schedule.retried > retried, "the engine held nothing when it was killed"
    assert sorted(outcome.task.prompt_id for outcome in seen) == sorted(task.prompt_id for task in orders)
    assert all(len(outcome.rollouts) == 8 for outcome in seen)
    assert same(reference, {outcome.task.prompt_id: outcome.rollouts for outcome in seen})
    assert pool.schedule.waiting == pool.schedule.running == 0
    assert len(after) == 10
    assert any("lost engine-0" in line for line in lines)


def test_engine_lost_during_update_is_replaced(shared):
    pool, losses = shared.pool, shared.pool.losses

    async def scenario():
        await pool.publish(shared.publication())
        await shared.all_serve()
        victim = (await pool.engines[1].actor.start.remote())["pid"]
        os.kill(victim, signal.SIGSTOP)  # it will be in the update when it dies
        shared.learner.shake()
        last = shared.publication()
        publishing = asyncio.create_task(pool.publish(last))
        await asyncio.sleep(0.5)
        assert not publishing.done(), "it did not wait for the engine that was in the update"
        os.kill(victim, signal.SIGKILL)
        await publishing
        await shared.all_serve()
        gaps = [engine.gap for engine in pool.engines]
        return gaps, last.version, await gather(pool, shared.fresh(tasks(40)))

    gaps, version, after = shared.run(scenario())
    assert max(gaps) < 1e-4
    assert pool.losses == losses + 1
    assert {rollout.policy_versions[0][0] for rollouts in after.values() for rollout in rollouts} == {version}


def test_engines_report_every_token_that_they_sample(shared, monkeypatch):
    """Not only those of responses that have ended: an engine that works on long ones is not late."""
    pool, reports = shared.pool, []
    process = EngineSupervisor.process_report

    def recorded(supervisor, report):
        reports.append(report)
        process(supervisor, report)

    async def scenario():
        await pool.publish(shared.publication())
        monkeypatch.setattr(EngineSupervisor, "process_report", recorded)
        return await gather(pool, shared.fresh(tasks(10)))

    found = shared.run(scenario())
    tokens = sum(len(rollout.tokens) for rollouts in found.values() for rollout in rollouts)
    assert 0 <= sum(report.sampled for report in reports) - tokens <= len(pool.engines)  # a probe samples one, too


def test_invalid_prompt_and_slow_task_fail(shared):
    """Runs last on the shared pool: it leaves an engine that was killed for being late."""
    pool, losses = shared.pool, shared.pool.losses
    good, long = tasks(2)
    long = dataclasses.replace(long, prompt_id="long", prompt_tokens=(5,) * 500)
    late = list(tasks(1, rollouts=1500, max_tokens=110, timeout_s=0.0))  # many seconds of work

    async def scenario():
        pool.schedule.max_attempts = 1
        await pool.publish(shared.publication())
        first = {o.task.prompt_id: o async for o in outcomes(pool, shared.fresh([good, long]))}
        return first, [o async for o in outcomes(pool, shared.fresh(late))]

    first, second = shared.run(scenario())
    assert len(first[good.prompt_id].rollouts) == 4
    assert "500" in first["long"].failure or "longer" in first["long"].failure
    assert pool.losses == losses + 1
    assert "rollout.task_timeout_s" in second[0].failure


def test_untied_model_has_the_learners_logprobs(ray_local, untied_policy):
    learner, versions = PlainLearner(untied_policy), iter(range(9))

    async def scenario():
        pool = make_pool(untied_policy, 1, "untied")
        pool.start()
        try:
            numbers = iter(range(1000))
            return await parity(
                pool,
                learner,
                lambda: learner.publication(next(versions)),
                lambda orders: [dataclasses.replace(task, id=next(numbers)) for task in orders],
            )
        finally:
            await pool.close()

    check_parity(learner, *asyncio.run(scenario()))


def test_engine_with_wrong_weights_is_killed(ray_local, tied_policy):
    """First a byte changes on the way; then, for the engine's next start, the learner has other logprobs of the probe."""
    learner = PlainLearner(tied_policy)

    async def scenario():
        pool = make_pool(tied_policy, 1, "wrong-weights", max_restarts=1)
        pool.start()
        try:
            honest = learner.publication(0)
            weights = copy.deepcopy(ray_local.get(honest.weights))
            name = weights.manifest[5].name
            weights.parts[5] = weights.parts[5].copy()
            weights.parts[5][17] ^= 1
            altered = dataclasses.replace(honest, weights=ray_local.put(weights))
            publishing = asyncio.create_task(pool.publish(altered))
            while not any(f"{name} arrived with checksum" in line for line in lines):
                assert not publishing.done(), lines
                await asyncio.sleep(0.05)
            publishing.cancel()
            learner.shake()
            await pool.publish(dataclasses.replace(honest, version=1, logprobs=learner.logprobs(PROBE)))
        finally:
            await pool.close()

    with logged_lines() as lines, pytest.raises(KrayError, match=r"no engine is left.*not the learner's"):
        asyncio.run(asyncio.wait_for(scenario(), 400))
    assert sum("not the learner's" in line for line in lines) == 1
