"""Measures transfers by buckets between processes without Ray and vLLM. Used by jobs/bench_sync.py.

The learner holds float32 and sends bfloat16; engines verify every tensor and copy it to memory of their own. The floor is one
copy of the bytes into shared memory by the learner, and then one copy out of shared memory, which stands for the reload of an
engine, by all engines at once. A node is a receiver that gets the bytes by gloo over the loopback interface, which the floor
does not count.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from kray.bench.transfer_processes import LOOPBACK, Engine, Learner, Node, Process
from kray.errors import KrayError
from kray.weight_sync.buckets import MIB

# Limit of one bucket and of every wait, seconds.
LIMIT_S = 120.0
# Transfers before the measured ones: until all memory has been touched.
WARM_UP = 2
# Memory of a process with torch loaded, in bytes.
PROCESS_BYTES = 300 * MIB
GIB = 2**30

HEAD = (
    "medians: parameters  bucket MiB  engines  other nodes  floor ms (copy + reload)  time ms  ratio  GB/s to each  "
    "rank 0's peak beside its weights, MiB"
)


def needed_bytes(parameters: int, engines: int, nodes: int, bucket_mib: int) -> float:
    """Return the memory that a measurement takes: float32 in the learner, bfloat16 in each engine, two buckets a node."""
    return (4 + 2 * engines) * parameters + 2 * (1 + nodes) * bucket_mib * MIB + PROCESS_BYTES * (1 + engines + nodes)


def _require_memory(needed: float) -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    if needed > free:
        raise KrayError(f"the next measurement needs {needed / GIB:.1f} GiB of memory, {free / GIB:.1f} are free")


def measure(parameters: int, engines: int, nodes: int, bucket_mib: int, rounds: int) -> dict[str, Any]:
    """Measure transfers to engines, which are divided over the learner's node and further ones.

    Args:
        parameters: Of the policy.
        engines: Number of engines.
        nodes: Nodes besides the learner's; with as many as engines, the learner's has none.
        bucket_mib: Size of a bucket.
        rounds: Measured transfers.

    Returns:
        Medians of seconds and bytes; peak_bytes is the largest of all rounds.

    Raises:
        KrayError: It takes more memory than is free.
    """
    _require_memory(needed_bytes(parameters, engines, nodes, bucket_mib))
    made: list[Process] = []

    def process(*arguments: Any) -> Process:
        made.append(Process(*arguments))
        return made[-1]

    try:
        learner = process(Learner, parameters, LIMIT_S)
        root = (LOOPBACK, learner.call("port")) if nodes else (LOOPBACK, 0)
        others = {f"node-{i}": process(Node, f"node-{i}", root, LIMIT_S) for i in range(nodes)}
        of_node: list[list[Process]] = [[] for _ in range(1 + nodes)]
        for i in range(engines):
            of_node[(i + 1) % (1 + nodes) if nodes else 0].append(process(Engine))
        found = [_round(learner, others, of_node, bucket_mib, f"t{i}") for i in range(WARM_UP + rounds)][WARM_UP:]
        peak = learner.call("peak_bytes")
    finally:
        for each in made:
            each.close()
    medians: dict[str, Any] = {name: float(np.median([each[name] for each in found])) for name in found[0]}
    shape = {"parameters": parameters, "engines": engines, "nodes": nodes, "bucket_mib": bucket_mib}
    floor_s = medians["floor_copy_s"] + medians["floor_reload_s"]
    return shape | medians | {"floor_s": floor_s, "ratio": medians["total_s"] / floor_s, "peak_bytes": peak}


def _round(
    learner: Process, others: dict[str, Process], of_node: list[list[Process]], bucket_mib: int, transfer: str
) -> dict[str, float]:
    """Measure one transfer and one floor."""
    plan = learner.call("plan", bucket_mib * MIB)
    feeds = [learner.call("open", len(of_node[0]), plan.capacity)]
    feeds += [
        node.call("open", len(found), plan.capacity) for node, found in zip(others.values(), of_node[1:], strict=True)
    ]
    engines = [engine for found in of_node for engine in found]
    for engine, feed in zip(engines, [feed for found in feeds for feed in found], strict=True):
        engine.call("join", feed)
    started = time.monotonic()
    for engine in engines:
        engine.begin("read")
    for node in others.values():
        node.begin("receive", transfer)
    learner.begin("send", transfer, list(others), bucket_mib * MIB)
    read = [engine.result(LIMIT_S) for engine in engines]
    total_s = time.monotonic() - started
    sent, send_s = learner.result(LIMIT_S)
    for node in others.values():
        node.result(LIMIT_S)
    assert all(found.get("checksum") == sent.checksum for found in read), read
    copy_s = learner.call("copy_s", sent.nbytes, plan.capacity)
    for engine in engines:
        engine.begin("reload_s", plan.capacity)
    reloads = [engine.result(LIMIT_S) for engine in engines]
    return {
        "bytes": sent.nbytes,
        "total_s": total_s,
        "send_s": send_s,
        "floor_copy_s": copy_s,
        "floor_reload_s": max(reloads),
        "wait_s": max(found["wait_s"] for found in read),
        "copy_s": max(found["copy_s"] for found in read),
    }


def table(found: dict[str, Any]) -> str:
    """Format the figures of one configuration as a line below HEAD."""
    parts = f"({1e3 * found['floor_copy_s']:.0f} + {1e3 * found['floor_reload_s']:.0f})"
    return (
        f"{found['parameters'] / 1e6:18.0f}M {found['bucket_mib']:11} {found['engines']:8} {found['nodes']:12} "
        f"{1e3 * found['floor_s']:8.0f} {parts:>16} {1e3 * found['total_s']:8.0f} {found['ratio']:6.2f} "
        f"{found['bytes'] / found['total_s'] / 1e9:13.2f} {found['peak_bytes'] / MIB:38.0f}"
    )
