"""How many threads a process may compute with on CPU, and how many kernels it keeps."""

from __future__ import annotations

import os

# Value of `rollout.threads_per_engine` and `train.threads_per_rank` for all cores of this machine.
ALL_CORES = -1
# Environment of processes that compute with torch on CPU. oneDNN keeps 1,024 kernels and torch 1,024 of its operations, one for
# each shape of a matrix: in bfloat16 12 MB more with every micro-batch of another length, up to gigabytes. A micro-batch
# needs about thirty.
KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}


def cores_here() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(threads: int, cpus: int) -> int:
    """Return the threads of an engine or a rank.

    Args:
        threads: The key's value: a number, 0 for as many as `cpus`, or ALL_CORES.
        cpus: CPU cores that it asks Ray for.
    """
    if threads == ALL_CORES:
        return cores_here()
    return max(1, threads or cpus)
