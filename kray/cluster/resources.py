"""Whether this machine has the CPUs and GPUs of a run that starts Ray here; on a cluster `--check --cluster` answers that."""

from __future__ import annotations

import os

from kray.cluster.address import given_cluster
from kray.cluster.gpus import build_problem, require_cuda, vllm_build
from kray.config import KrayConfig
from kray.config.placement import requested
from kray.errors import ConfigError


def joins_cluster() -> bool:
    """Return whether a run joins an existing cluster: that of its Ray job, or of RAY_ADDRESS."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or bool(given_cluster())


def required_gpus(config: KrayConfig) -> int:
    """Count the GPUs that a run needs to begin: those of its ranks and of its fewest engines, at least one."""
    rollout, train = config.rollout, config.train
    if rollout.colocate:
        return train.ranks * train.gpus_per_rank
    fewest = rollout.engines if rollout.min_engines is None else max(1, rollout.min_engines)
    return fewest * rollout.gpus_per_engine + train.ranks * train.gpus_per_rank


def missing_gpus(config: KrayConfig, gpus: int) -> str:
    """Return the message for a run that needs more GPUs than there are, else ""."""
    rollout, train = config.rollout, config.train
    if required_gpus(config) <= gpus:
        return ""
    parts = f"train.ranks {train.ranks} x train.gpus_per_rank {train.gpus_per_rank}"
    if not rollout.colocate:
        parts += f" + engines x rollout.gpus_per_engine {rollout.gpus_per_engine}"
    share = ", have both share one (rollout.colocate=true)" if gpus and not rollout.colocate else ""
    return (
        f"train.gpus_per_rank, rollout.gpus_per_engine: {parts} = {required_gpus(config)} GPUs, and "
        f"this machine has {gpus}: set both to 0{share}, or submit to a cluster (jobs/submit.py)"
    )


def shortages(config: KrayConfig, cpus: int, gpus: int) -> list[str]:
    """List what a run would lack on a machine with so many cores and GPUs, one sentence each, GPUs first."""
    found, wanted = [missing_gpus(config, gpus)], requested(config)[0]
    if wanted > cpus:
        found.append(
            f"train.ranks {config.train.ranks} and rollout.engines {config.rollout.engines} ask for {wanted} CPUs, and this "
            f"machine has {cpus}: they take turns, and more of them make nothing faster"
        )
    return [line for line in found if line]


def shortages_here(config: KrayConfig) -> list[str]:
    """List the shortages of this machine; where the run joins a cluster, none but those of the build of vLLM."""
    found = [] if joins_cluster() else shortages(config, os.cpu_count() or 1, gpus_here(config))
    return [*filter(None, [wrong_build(config)]), *found]


def wrong_build(config: KrayConfig) -> str:
    """Return why engines cannot compute with the build of vLLM that is installed here, else "".

    The nodes of a cluster are installed alike, but its head may have no GPU and the CPU build.
    """
    build = vllm_build()
    gpus = config.rollout.gpus_per_engine
    return "" if build == "cpu" and joins_cluster() else build_problem(gpus, build)


def require_gpus(config: KrayConfig) -> None:
    """Refuse a run whose GPUs this machine lacks or cannot use; Ray would wait for them, or engines fail one after the other.

    Raises:
        ConfigError: The message names the keys and the counts, the build of vLLM, or the versions of driver and CUDA.
    """
    if joins_cluster():
        lacking = ""
    else:
        lacking = missing_gpus(config, gpus_here(config))
    if lacking := lacking or wrong_build(config):
        raise ConfigError(lacking)
    if required_gpus(config) and not joins_cluster():
        require_cuda("rollout.gpus_per_engine, train.gpus_per_rank")


def gpus_here(config: KrayConfig) -> int:
    """Count the GPUs of this machine; 0 without counting where the run needs none, since importing torch takes seconds."""
    if not required_gpus(config):
        return 0
    import torch

    return torch.cuda.device_count()
