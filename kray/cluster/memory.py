"""Memory of this machine and of its GPUs, where a run would have its actors here."""

from __future__ import annotations

import os

from kray.cluster.resources import gpus_here, joins_cluster, missing_gpus, required_gpus
from kray.config import KrayConfig
from kray.config.memory_check import Devices


def devices_here(config: KrayConfig, elsewhere: bool) -> Devices:
    """Return the memory that is known: none of a run that this machine has too few GPUs for.

    Args:
        config: The configuration; a run without GPUs asks for none, since importing torch takes seconds.
        elsewhere: Whether the run is checked for a cluster.
    """
    if elsewhere or joins_cluster() or missing_gpus(config, gpus_here(config)):
        return Devices()
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Devices(_gpu_bytes() if required_gpus(config) else None, machine)


def _gpu_bytes() -> int | None:
    """Return the memory of the smallest GPU of this machine; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    counts = range(torch.cuda.device_count())
    return min((torch.cuda.get_device_properties(i).total_memory for i in counts), default=None)
