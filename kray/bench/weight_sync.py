"""How fast new weights get from the learner into engines that prove them, beside the floor. Used by jobs/bench_sync.py.

Real learner, pool and engines; policies with random weights; a training step before every publication. The floor is what
cannot be left out: one copy of the bytes, and vLLM's own reload of the same tensors from the engine's own memory (it
repacks them; a tied output layer it leaves out). It is measured in the engines' processes, between the publications:
in one engine while the others rest, and in all at once, as many as there are.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray

from kray.bench.learner import SHAPES, Workload, make_groups, make_model
from kray.config.schema import RolloutConfig
from kray.config.train_schema import TrainConfig
from kray.rollout.engine import Engine
from kray.rollout.engine_spec import EngineSpec
from kray.rollout.pool import Pool
from kray.rollout.pool_state import Published
from kray.train.learner_group import LearnerGroup
from kray.weight_sync.flat_weights import FlatWeights

PROBE_TOKENS = 64  # as in a run (kray/driver/components.py)
WARM_UP = 3  # publications: until memory that is used again and again has been touched
REST_S = 1.5  # between publications, as in training: Ray frees the old version's memory about once a second
LIMIT_S = 300.0  # for anything that is waited for


def floor(engine: Engine, weights: FlatWeights, repeats: int = 3) -> tuple[float, float]:
    """Median seconds of (a copy out of shared memory, vLLM's reload). Runs in an engine's process, while it rests."""
    own = [(name, tensor.clone()) for name, tensor in weights.tensors()]
    shared = [tensor for _, tensor in weights.tensors()]

    def copy() -> None:
        for (_, target), source in zip(own, shared, strict=True):
            target.copy_(source)

    def reload() -> None:
        engine._rpc("reload_weights", {"weights_iterator": iter(own)})

    return engine._command(_median_s, copy, repeats), engine._command(_median_s, reload, repeats)


def _median_s(job: Any, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        job()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


async def measure(shape: str, engines: int, rounds: int, dtype: str) -> dict[str, Any]:
    """Medians over `rounds` publications of a policy of this shape to so many engines, one core each.

    least: the smallest values, which say more where other work shares the machine; `_judged` from each part's own.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_model(shape, folder)
        learners = LearnerGroup(TrainConfig(lr=1e-4, timeout_s=LIMIT_S), dtype, folder, rounds, 0)
        rollout = RolloutConfig(engines=engines, start_timeout_s=LIMIT_S, sync_timeout_s=LIMIT_S)
        spec = EngineSpec(folder, dtype, 256, 16, 1, 0, 0.1, 0.0, eager=True, seed=0)
        pool = Pool(rollout, spec, f"sync-{shape}-{engines}")
        try:
            (learner,) = await learners.start()
            pool.start()
            found = [await _round(learners, pool, shape, version) for version in range(WARM_UP + rounds)][WARM_UP:]
        finally:
            await pool.close()
            learners.close()
    columns = {name: [each[name] for each in found] for name in found[0]}
    medians = _judged({name: float(np.median(column)) for name, column in columns.items()})
    least = _judged({name: float(min(column)) for name, column in columns.items()})
    of = {"shape": shape, "parameters": learner["parameters"], "engines": engines, "dtype": dtype}
    return of | medians | {"least": least}


async def _round(learners: LearnerGroup, pool: Pool, shape: str, version: int) -> dict[str, float]:
    """One publication and one floor: seconds of each part."""
    load = Workload(shape, 2, 8, (8, 8), (8, 8), 1e6, 4096)
    await learners.update(make_groups(load, version))
    await asyncio.sleep(REST_S)
    probe = tuple(np.random.default_rng(0).integers(SHAPES[shape][-1], size=PROBE_TOKENS).tolist())
    times = [time.perf_counter()]
    gathered, weights = await learners.gather_weights()
    times.append(time.perf_counter())
    thinking = asyncio.ensure_future(_think_of(learners, probe))
    logprobs = asyncio.ensure_future(_first(thinking))
    await pool.publish(Published(version, weights, gathered.checksum, probe, logprobs))
    await pool.wait_until_all_serve()  # the first time they come up one by one
    times.append(time.perf_counter())
    handed_over_s, publish_s = np.diff(times)
    _, learner_probe_s = await thinking
    proofs = [engine.proof for engine in pool.engines if engine.proof is not None]
    assert {proof.checksum for proof in proofs} == {gathered.checksum}
    seconds = [proof.seconds for proof in proofs]
    alone = await _floors(pool.engines[:1], weights)
    together = await _floors(pool.engines, weights) if len(pool.engines) > 1 else alone
    return {
        "bytes": gathered.nbytes,
        "gather_s": gathered.gather_s,
        "checksum_s": gathered.checksum_s,
        "put_s": handed_over_s - gathered.gather_s - gathered.checksum_s,
        "learner_probe_s": learner_probe_s,
        **{f"{part}_s": max(each[part] for each in seconds) for part in ("verify", "load", "probe")},
        "engines_sum_s": sum(sum(each.values()) for each in seconds),
        "rest_s": publish_s - max(sum(each.values()) for each in seconds),
        "publish_s": publish_s,
        "total_s": times[-1] - times[0],
        "copy_s": alone[0],
        "reload_s": alone[1],
        "copy_together_s": together[0],
        "reload_together_s": together[1],
    }


async def _think_of(learners: LearnerGroup, probe: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """(logprobs (P - 1,), seconds): the learner computes them while the engines load."""
    started = time.perf_counter()
    logprobs = (await learners.logprobs([(probe[:1], probe[1:])]))[0]
    return logprobs, time.perf_counter() - started


async def _first(thinking: asyncio.Future) -> np.ndarray:
    return (await thinking)[0]


async def _floors(engines: list[Any], weights: Any) -> tuple[float, float]:
    """Of the slowest engine, when all of these measure at once."""
    calls = [engine.actor.__ray_call__.remote(floor, weights) for engine in engines]
    copies, reloads = zip(*await asyncio.wait_for(asyncio.gather(*calls), LIMIT_S), strict=True)
    return max(copies), max(reloads)


def _judged(found: dict[str, float]) -> dict[str, Any]:
    """Adds what the parts add up to, and how that compares with the floor."""
    arrived_s = sum(found[f"{part}_s"] for part in ("gather", "checksum", "put", "verify", "load"))
    floor_s = found["copy_s"] + found["reload_s"]
    together_s = found["copy_together_s"] + found["reload_together_s"]
    return found | {
        "arrived_s": arrived_s,  # until the weights are in, without the proof by logprobs
        "floor_s": floor_s,
        "floor_together_s": together_s,
        "bytes_per_s": found["bytes"] / found["total_s"],
        "arrived_ratio": arrived_s / together_s,
        "total_ratio": found["total_s"] / together_s,
    }


def run(shapes: list[str], engines: list[int], rounds: int, dtype: str) -> Iterator[dict[str, Any]]:
    """All combinations, one after the other, on a Ray cluster of this run's own."""
    ray.init(
        address="local",
        num_cpus=max(engines) + 1,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=3 * 2**30,
    )
    try:
        for shape in shapes:
            for count in engines:
                yield asyncio.run(measure(shape, count, rounds, dtype))
    finally:
        ray.shutdown()
