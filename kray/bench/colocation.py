"""Measures the main memory of a rank and an engine on CPU, apart and taking turns. Used by jobs/bench_colocation.py.

Real learner, pool and engine; a policy with random weights. Memory is what belongs to a process alone, without the object
store. On CPU the device is main memory too and vLLM cannot sleep, so that what colocation saves on a GPU does not show: the
figures say what a rank holds while an engine generates, and that nothing is held twice.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import ray

from kray.bench.learner import SHAPES, Workload, make_groups, make_model
from kray.cluster.token import protect_token
from kray.config.schema import RolloutConfig
from kray.config.train_schema import TrainConfig
from kray.driver.colocation import Colocation
from kray.records import RolloutTask, Sampling
from kray.rollout.engine_spec import EngineSpec
from kray.rollout.pool import Pool
from kray.rollout.pool_state import Published
from kray.train.learner_group import LearnerGroup

# Seconds: the limit of every wait, and the time between two looks at a process.
LIMIT_S, LOOK_S = 300.0, 0.02
# Rollouts and their tokens.
ROLLOUTS, TOKENS = 16, 64
HEAD = f"{'MiB':22} {'rank, generating':>17} {'rank, at most':>14} {'engine':>8}"


async def measure(shape: str, colocate: bool, offload: str, steps: int) -> dict[str, Any]:
    """Measure the last of some steps.

    Returns:
        MiB of the rank while the engine generates, of the engine then, and at most of the rank in the update.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_model(shape, folder)
        train = TrainConfig(lr=1e-4, timeout_s=LIMIT_S, offload=offload)
        learners = LearnerGroup(train, "float32", folder, steps, 0)
        rollout = RolloutConfig(colocate=colocate, start_timeout_s=LIMIT_S, sync_timeout_s=LIMIT_S)
        spec = EngineSpec(folder, "float32", 256, ROLLOUTS, 1, 0, 0.1, 0.0, eager=True, seed=0, sleeps=colocate)
        turns = Colocation(rollout, learners) if colocate else None
        pool = Pool(rollout, spec, f"memory-{shape}", turns.sharing if turns else None)
        try:
            if turns:
                turns.pool = pool
            (rank,) = await learners.start()
            if turns:
                turns.learner_started()
            else:
                pool.start()
            found: dict[str, float] = {}
            for version in range(steps):
                await _serve(learners, pool, turns, shape, version)
                found = await _generate(pool, rank["pid"], shape, version) | await _update(
                    learners, rank["pid"], shape, version
                )
        finally:
            await pool.close()
            learners.close()
    return {"shape": shape, "colocate": colocate, "offload": offload, "parameters": rank["parameters"]} | found


async def _serve(learners: LearnerGroup, pool: Pool, turns: Colocation | None, shape: str, version: int) -> None:
    probe = tuple(np.random.default_rng(0).integers(SHAPES[shape][-1], size=TOKENS).tolist())
    gathered, weights = await learners.gather_weights()
    logprobs = (await learners.logprobs([(probe[:1], probe[1:])]))[0]
    published = Published(version, weights, gathered.checksum, probe, logprobs)
    await (turns.hand_over(published) if turns else pool.publish(published))


async def _generate(pool: Pool, rank: int, shape: str, version: int) -> dict[str, float]:
    prompt = tuple(range(2, 18))
    task = RolloutTask(version, "p", prompt, ROLLOUTS, 0, 0, version, Sampling(TOKENS), LIMIT_S, TOKENS)
    with pool.open() as session:
        session.submit([task])
        await session.next()
    engine = (await pool.engines[0].actor.start.remote())["pid"]
    return {"rank_generating": _own_mib(rank), "engine": _own_mib(engine)}


async def _update(learners: LearnerGroup, rank: int, shape: str, version: int) -> dict[str, float]:
    load = Workload(shape, 4, 8, (16, 16), (TOKENS, TOKENS), 1e6, 4096)
    updating = asyncio.ensure_future(learners.update(make_groups(load, version)))
    most = 0.0
    while not updating.done():
        most = max(most, _own_mib(rank))
        await asyncio.wait({updating}, timeout=LOOK_S)
    updating.result()
    return {"rank_most": max(most, _own_mib(rank))}


def _own_mib(pid: int) -> float:
    return float(psutil.Process(pid).memory_full_info().uss) / 2**20


def table(found: dict[str, Any]) -> str:
    """Format figures as a line below HEAD."""
    how = f"{found['shape']} {'in turns' if found['colocate'] else 'apart'} {found['offload']}"
    return f"{how:22} {found['rank_generating']:17.0f} {found['rank_most']:14.0f} {found['engine']:8.0f}"


def run(shapes: list[str], steps: int) -> Iterator[dict[str, Any]]:
    """Measure each shape apart, in turns, and in turns with each offload, on a Ray cluster of its own."""
    protect_token()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=2 * 2**30,
    )
    try:
        for shape in shapes:
            for colocate, offload in ((False, "none"), (True, "none"), (True, "optimizer"), (True, "all")):
                yield asyncio.run(measure(shape, colocate, offload, steps))
    finally:
        ray.shutdown()
