"""Weights go from learner ranks to real engines by buckets; each engine counts as a node of its own."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from logged_lines import logged_lines
from tiny_pool import PROBE, make_pool

from kray.config.train_schema import TrainConfig
from kray.errors import InfrastructureError
from kray.records import Prompt, Rollout, RolloutGroup

# MiB of a bucket: some ten of the tiny policy.
BUCKET_MIB = 0.05


def mixed_groups(seed: int) -> list[RolloutGroup]:
    rng = np.random.default_rng(seed)
    logprobs = np.full(5, -3.0, np.float32)
    rollouts = [
        Rollout("p", i, rng.integers(0, 40, 5), logprobs, "stop", ((0, 0, 5),), reward=float(i % 2)) for i in range(4)
    ]
    return [RolloutGroup(Prompt("p", "", "exact", "test", text="x"), (3, 4, 5), rollouts, 4.0)]


@pytest.mark.timeout(600)
def test_every_engine_serves_each_version_whoever_is_lost(ray_local, tied_policy):
    from kray.driver.broadcasts import Broadcasts
    from kray.rollout.pool_state import Published
    from kray.train.learner_group import LearnerGroup

    train = TrainConfig(ranks=2, lr=1e-2, timeout_s=120)
    learners = LearnerGroup(train, "float32", str(tied_policy), 10, 0)
    pool = make_pool(tied_policy, 2, "broadcasts")

    def node_of(engine) -> str:
        return engine.node if engine.name == "engine-0" else "another"

    async def logprobs_after(sent) -> np.ndarray:
        await asyncio.shield(sent)
        return (await learners.logprobs([(PROBE[:1], PROBE[1:])]))[0]

    async def serve(version: int, before=lambda: None, after=lambda: None) -> dict:
        """Publish the learner's weights and return which engines got them by buckets."""
        before()
        handed = await broadcasts.begin()
        after()
        logprobs = asyncio.ensure_future(logprobs_after(handed.checksum))
        await pool.publish(Published(version, handed.weights, handed.checksum, PROBE, logprobs, joined=handed.joined))
        await pool.wait_until_all_serve()
        gathered, _ = await learners.gather_weights()  # in one piece, as without buckets
        proofs = {engine.name: engine.proof for engine in pool.engines}
        assert {proof.checksum for proof in proofs.values()} == {gathered.checksum} == {handed.checksum.result()}
        assert max(engine.gap for engine in pool.engines) < 1e-4
        await learners.update(mixed_groups(version))
        return {name: "wait" in proof.seconds for name, proof in proofs.items()}

    async def lose_a_rank(version: int) -> None:
        """Kill a rank of the learner while it sends; engines are not lost with it and wait for the next version."""
        handed = await broadcasts.begin()
        ray_local.kill(learners.actors[1])
        logprobs = asyncio.ensure_future(logprobs_after(handed.checksum))
        published = Published(version, handed.weights, handed.checksum, PROBE, logprobs, joined=handed.joined)
        publishing = asyncio.ensure_future(pool.publish(published))
        with pytest.raises(InfrastructureError):
            await logprobs
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        learners.kill()
        await learners.start()

    async def scenario():
        await learners.start()
        pool.start()
        both, first, second = [{"engine-0": a, "engine-1": b} for a, b in [(True, True), (True, False), (False, True)]]
        # No engine is up yet: they load from the object store.
        assert await serve(0) == {"engine-0": False, "engine-1": False}
        assert await serve(1) == both
        receiver = broadcasts.receivers["another"]
        assert await serve(2) == both
        assert broadcasts.receivers["another"] is receiver
        assert pool.losses == 0

        def lose_receiver() -> None:
            ray_local.kill(broadcasts.receivers["another"].actor)

        assert await serve(3, before=lose_receiver) == first
        assert await serve(4) == both
        assert await serve(5, after=lose_receiver) == first
        assert pool.losses == 0
        assert await serve(6) == both

        # In the middle of a broadcast: the third of many buckets waits for every engine that has joined.
        assert await serve(7, after=lambda: ray_local.kill(pool.engines[1].actor)) == first
        assert pool.losses == 1
        assert await serve(8, after=lambda: ray_local.kill(pool.engines[0].actor)) == second
        assert pool.losses == 2
        assert learners.actors

        await lose_a_rank(9)
        assert await serve(10) == both
        assert pool.losses == 2

    async def run():
        try:
            await asyncio.wait_for(scenario(), 580)
        finally:
            await pool.close()
            await broadcasts.close()
            learners.close()

    broadcasts = Broadcasts(learners, pool, BUCKET_MIB, node_of)
    with logged_lines() as lines:
        asyncio.run(run())
    assert sum("the receiver of node another was lost" in line for line in lines) == 3
