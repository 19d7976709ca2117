"""Measures transfers by buckets between processes without Ray and vLLM. Used by jobs/bench_sync.py.

Engines verify every tensor and copy it to memory of their own. The floor is a plain copy of as many bytes out of shared memory,
in as many processes at once. A node is a receiver that gets the bytes by gloo over the loopback interface.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from kray.bench.transfer_processes import LOOPBACK, Engine, Learner, Node, Process
from kray.weight_sync.buckets import MIB

# Limit of one bucket and of every wait, seconds.
LIMIT_S = 120.0
# Transfers before the measured ones: until memory that is reused has been touched.
WARM_UP = 1

HEAD = "milliseconds  parameters  bucket MiB  engines  other nodes     total     floor  ratio  GB/s  sender grew by MiB"


def measure(parameters: int, engines: int, nodes: int, bucket_mib: int, rounds: int) -> dict[str, Any]:
    """Measure transfers to engines, which are divided over the learner's node and further ones.

    Args:
        parameters: Of the policy, in bfloat16.
        engines: Number of engines.
        nodes: Nodes besides the learner's; with as many as engines, the learner's has none.
        bucket_mib: Size of a bucket.
        rounds: Measured transfers.

    Returns:
        Medians.
    """
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
    finally:
        for each in made:
            each.close()
    medians: dict[str, Any] = {name: float(np.median([each[name] for each in found])) for name in found[0]}
    shape = {"parameters": parameters, "engines": engines, "nodes": nodes, "bucket_mib": bucket_mib}
    return shape | medians | {"ratio": medians["total_s"] / medians["floor_s"]}


def _round(
    learner: Process, others: dict[str, Process], of_node: list[list[Process]], bucket_mib: int, transfer: str
) -> dict[str, float]:
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
        engine.begin("read", "", 0, False)
    for node in others.values():
        node.begin("receive", transfer)
    learner.begin("send", transfer, list(others), bucket_mib * MIB)
    read = [engine.result(LIMIT_S) for engine in engines]
    total_s = time.monotonic() - started
    sent, send_s, grew = learner.result(LIMIT_S)
    for node in others.values():
        node.result(LIMIT_S)
    assert all(found.get("checksum") == sent.checksum for found in read), read
    for engine in engines:
        engine.begin("copy_s", sent.nbytes, bucket_mib * MIB)
    floors = [engine.result(LIMIT_S) for engine in engines]
    return {
        "bytes": sent.nbytes,
        "total_s": total_s,
        "send_s": send_s,
        "floor_s": max(floors),
        "wait_s": max(found["wait_s"] for found in read),
        "copy_s": max(found["copy_s"] for found in read),
        "grew_bytes": grew,
    }


def table(found: dict[str, Any]) -> str:
    """Format the figures of one configuration as a line below HEAD."""
    return (
        f"{found['parameters'] / 1e6:22.0f}M {found['bucket_mib']:11} {found['engines']:8} {found['nodes']:12} "
        f"{1e3 * found['total_s']:9.0f} {1e3 * found['floor_s']:9.0f} {found['ratio']:6.2f} "
        f"{found['bytes'] / found['total_s'] / 1e9:5.2f} {found['grew_bytes'] / MIB:19.0f}"
    )
