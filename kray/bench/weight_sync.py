"""Measures how fast new weights reach engines that verify them, against a floor. Used by jobs/bench_sync.py.

Real learner, pool and engines; policies with random weights; a training step before every publication. The floor is the
unavoidable work: one copy of the bytes, and vLLM's own reload of the same tensors from the engine's own memory (it repacks
them and leaves out a tied output layer). It is measured in the engines' processes between publications: in one engine while
the others are idle, and in all at once.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray

from kray.bench.learner import SHAPES, Workload, make_groups, make_model
from kray.bench.transfer_processes import resident_bytes
from kray.cluster.token import protect_token
from kray.config.schema import RolloutConfig
from kray.config.train_schema import TrainConfig
from kray.driver.broadcasts import Broadcasts
from kray.rollout.engine import Engine
from kray.rollout.engine_spec import EngineSpec
from kray.rollout.health import State
from kray.rollout.pool import Pool
from kray.rollout.pool_state import Published
from kray.train.learner_group import LearnerGroup
from kray.weight_sync.flat_weights import FlatWeights

# Tokens of the probe, as in a run (kray/driver/components.py).
PROBE_TOKENS = 64
# Publications before the measured ones: until memory that is reused has been touched.
WARM_UP = 3
# Seconds between publications, as in training: Ray frees the old version's memory about once a second.
REST_S = 1.5
# Limit of every wait, seconds.
LIMIT_S = 300.0
# Columns of the table: parts of a publication.
PARTS = ("gather", "checksum", "put", "learner_probe", "verify", "load", "probe", "rest")
HEAD = f"milliseconds  engines {' '.join(f'{part:>13}' for part in PARTS)}         total      floor  arrived   proved"


def floor(engine: Engine, weights: FlatWeights, repeats: int = 3) -> tuple[float, float]:
    """Measure median seconds of (a copy out of shared memory, vLLM's reload); runs in the process of an idle engine."""
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


async def measure(
    shape: str, engines: int, rounds: int, dtype: str, bucket_mib: int = 0, spread: bool = False
) -> dict[str, Any]:
    """Measure `rounds` publications of a policy of this shape to so many engines, one core each.

    Args:
        shape: Of the policy, a key of SHAPES.
        engines: Number of engines.
        rounds: Number of publications that are measured.
        dtype: Of the weights.
        bucket_mib: Size of the buckets; 0: in one piece through the object store.
        spread: Each engine counts as a node of its own, apart from the learner's.

    Returns:
        Medians, and as `least` the smallest value of each part, which depends less on other work on the machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_model(shape, folder)
        learners = LearnerGroup(TrainConfig(lr=1e-4, timeout_s=LIMIT_S), dtype, folder, rounds, 0)
        rollout = RolloutConfig(engines=engines, start_timeout_s=LIMIT_S, sync_timeout_s=LIMIT_S)
        spec = EngineSpec(folder, dtype, 256, 16, 1, 0, 0.1, 0.0, eager=True, seed=0)
        pool = Pool(rollout, spec, f"sync-{shape}-{engines}")
        broadcasts = None
        if bucket_mib:
            node_of = (lambda engine: engine.name) if spread else (lambda engine: engine.node)
            broadcasts = Broadcasts(learners, pool, bucket_mib, node_of)
        try:
            (learner,) = await learners.start()
            pool.start()
            versions = range(WARM_UP + rounds)
            found = [await _round(learners, pool, shape, version, broadcasts) for version in versions][WARM_UP:]
        finally:
            await pool.close()
            if broadcasts is not None:
                await broadcasts.close()
            learners.close()
    columns = {name: [each[name] for each in found] for name in found[0]}
    medians = _with_ratios({name: float(np.median(column)) for name, column in columns.items()})
    least = _with_ratios({name: float(min(column)) for name, column in columns.items()})
    of = {"shape": shape, "parameters": learner["parameters"], "engines": engines, "dtype": dtype}
    of |= {"bucket_mib": bucket_mib, "spread": spread}
    return of | medians | {"least": least}


async def _round(
    learners: LearnerGroup, pool: Pool, shape: str, version: int, broadcasts: Broadcasts | None
) -> dict[str, float]:
    """Measure one publication and one floor: seconds of each part."""
    if broadcasts is not None:
        return await _bucket_round(learners, pool, shape, version, broadcasts)
    load = Workload(shape, 2, 8, (8, 8), (8, 8), 1e6, 4096)
    await learners.update(make_groups(load, version))
    await asyncio.sleep(REST_S)
    probe = tuple(np.random.default_rng(0).integers(SHAPES[shape][-1], size=PROBE_TOKENS).tolist())
    times = [time.perf_counter()]
    gathered, weights = await learners.gather_weights()
    times.append(time.perf_counter())
    pending_probe = asyncio.ensure_future(_probe_logprobs(learners, probe))
    logprobs = asyncio.ensure_future(_first(pending_probe))
    await pool.publish(Published(version, weights, gathered.checksum, probe, logprobs))
    # The first time the engines start one by one.
    await pool.wait_until_all_serve()
    times.append(time.perf_counter())
    gathered_s, publish_s = np.diff(times)
    _, learner_probe_s = await pending_probe
    proofs = [engine.proof for engine in pool.engines if engine.proof is not None]
    assert {proof.checksum for proof in proofs} == {gathered.checksum}
    seconds = [proof.seconds for proof in proofs]
    alone = await _floors(pool.engines[:1], weights)
    together = await _floors(pool.engines, weights) if len(pool.engines) > 1 else alone
    return {
        "bytes": gathered.nbytes,
        "gather_s": gathered.gather_s,
        "checksum_s": gathered.checksum_s,
        "put_s": gathered_s - gathered.gather_s - gathered.checksum_s,
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


async def _bucket_round(
    learners: LearnerGroup, pool: Pool, shape: str, version: int, broadcasts: Broadcasts
) -> dict[str, float]:
    """Measure the same by buckets; what overlaps is not told apart: `gather` is all until the learner has sent all."""
    load = Workload(shape, 2, 8, (8, 8), (8, 8), 1e6, 4096)
    await learners.update(make_groups(load, version))
    await asyncio.sleep(REST_S)
    probe = tuple(np.random.default_rng(0).integers(SHAPES[shape][-1], size=PROBE_TOKENS).tolist())
    if not version:
        pool.raise_if_none_left()
        while any(engine.health.state is not State.STALE for engine in pool.engines):
            await asyncio.sleep(0.1)
    await learners.wait([learners.actors[0].__ray_call__.remote(forget_peak)], "to begin")
    started = time.perf_counter()
    handed = await broadcasts.begin()
    assert isinstance(handed.checksum, asyncio.Future)
    handed.checksum.add_done_callback(lambda _: sent.append(time.perf_counter() - started))
    sent: list[float] = []
    probing = asyncio.ensure_future(_sent_probe(learners, probe, handed.checksum))
    logprobs = asyncio.ensure_future(_first(probing))
    await pool.publish(Published(version, handed.weights, handed.checksum, probe, logprobs, joined=handed.joined))
    total_s = time.perf_counter() - started
    _, learner_probe_s = await probing
    (grown,) = await learners.wait([learners.actors[0].__ray_call__.remote(grown_bytes)], "to end")
    seconds = [engine.proof.seconds for engine in pool.engines if engine.proof is not None]
    assert all("wait" in each for each in seconds), "an engine did not get the buckets"
    gathered, weights = await learners.gather_weights()
    alone = await _floors(pool.engines[:1], weights)
    together = await _floors(pool.engines, weights) if len(pool.engines) > 1 else alone
    return {
        "bytes": gathered.nbytes,
        "gather_s": sent[0],
        "checksum_s": 0.0,
        "put_s": 0.0,
        "learner_probe_s": learner_probe_s,
        "verify_s": max(each["wait"] for each in seconds),
        "load_s": max(each["load"] for each in seconds),
        "probe_s": max(each["probe"] for each in seconds),
        "engines_sum_s": sum(each["load"] + each["probe"] for each in seconds),
        "rest_s": total_s - max(sum(each.values()) for each in seconds),
        "publish_s": total_s,
        "total_s": total_s,
        "arrive_s": max(each["wait"] + each["load"] for each in seconds),
        "grown_bytes": grown,
        "copy_s": alone[0],
        "reload_s": alone[1],
        "copy_together_s": together[0],
        "reload_together_s": together[1],
    }


def forget_peak(learner: Any) -> None:
    """Begin to measure by how much the learner's process grows; runs in it."""
    Path("/proc/self/clear_refs").write_text("5")
    learner.bench_resident = resident_bytes("VmRSS")


def grown_bytes(learner: Any) -> int:
    """Return by how many bytes the process grew at most since `forget_peak`; runs in it."""
    return resident_bytes("VmHWM") - learner.bench_resident


async def _sent_probe(learners: LearnerGroup, probe: tuple[int, ...], sent: asyncio.Future) -> tuple[np.ndarray, float]:
    await asyncio.shield(sent)
    return await _probe_logprobs(learners, probe)


async def _probe_logprobs(learners: LearnerGroup, probe: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Return (logprobs (P - 1,), seconds); the learner computes them while the engines load."""
    started = time.perf_counter()
    logprobs = (await learners.logprobs([(probe[:1], probe[1:])]))[0]
    return logprobs, time.perf_counter() - started


async def _first(pending_probe: asyncio.Future) -> np.ndarray:
    return (await pending_probe)[0]


async def _floors(engines: list[Any], weights: Any) -> tuple[float, float]:
    """Return the floor of the slowest engine when all of these measure at once."""
    calls = [engine.actor.__ray_call__.remote(floor, weights) for engine in engines]
    copies, reloads = zip(*await asyncio.wait_for(asyncio.gather(*calls), LIMIT_S), strict=True)
    return max(copies), max(reloads)


def _with_ratios(found: dict[str, float]) -> dict[str, Any]:
    """Add the sums of the parts and their ratios to the floor."""
    parts = ("gather", "checksum", "put", "verify", "load")
    arrived_s = found.get("arrive_s", sum(found[f"{part}_s"] for part in parts))
    floor_s = found["copy_s"] + found["reload_s"]
    together_s = found["copy_together_s"] + found["reload_together_s"]
    return found | {
        # Until the weights are loaded, without the verification by log-probabilities.
        "arrived_s": arrived_s,
        "floor_s": floor_s,
        "floor_together_s": together_s,
        "bytes_per_s": found["bytes"] / found["total_s"],
        "arrived_ratio": arrived_s / together_s,
        "total_ratio": found["total_s"] / together_s,
    }


def table(found: dict[str, Any]) -> str:
    """Format the figures of one configuration as lines below HEAD."""
    lines = []
    for label, times in (("median", found), ("least", found["least"])):
        cells = " ".join(f"{1e3 * times[f'{part}_s']:13.1f}" for part in PARTS)
        total_ms, floor_ms = 1e3 * times["total_s"], 1e3 * times["floor_together_s"]
        ratios = f"{times['arrived_ratio']:8.2f} {times['total_ratio']:8.2f}"
        lines.append(
            f"{found['shape']:5} {label:6} {found['engines']:8} {cells} {total_ms:13.1f} {floor_ms:10.1f} {ratios}"
        )
    lines.append(
        f"      {found['bytes'] / 1e6:.0f} MB, {found['bytes_per_s'] / 1e9:.2f} GB/s to each engine; floor of one engine "
        f"alone {1e3 * found['floor_s']:.1f} ms; engines' work {1e3 * found['engines_sum_s']:.1f} ms in "
        f"{1e3 * found['publish_s']:.1f} ms"
    )
    if found["bucket_mib"]:
        nodes = ", each engine a node" if found["spread"] else ""
        lines.append(
            f"      buckets of {found['bucket_mib']} MiB{nodes}: `gather` is until all was sent, `verify` the engines' wait; "
            f"rank 0 grew by {found['grown_bytes'] / 2**20:.0f} MiB"
        )
    return "\n".join(lines)


def run(
    shapes: list[str], engines: list[int], rounds: int, dtype: str, buckets: list[int], spread: bool
) -> Iterator[dict[str, Any]]:
    """Measure all combinations, one after the other, on a Ray cluster of its own."""
    protect_token()
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
                for bucket_mib in buckets:
                    yield asyncio.run(measure(shape, count, rounds, dtype, bucket_mib, spread))
    finally:
        ray.shutdown()
