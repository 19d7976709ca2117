"""What this machine has, for a run that starts a Ray of its own: on a cluster Ray and --check --cluster tell."""

from __future__ import annotations

import os

from kray.cluster.address import given_cluster
from kray.config import KrayConfig
from kray.config.placement import requested
from kray.errors import ConfigError


def joins_cluster() -> bool:
    """Whether a run goes into a cluster that is there: that of its Ray job, or of RAY_ADDRESS."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or bool(given_cluster())


def gpus_asked(config: KrayConfig) -> int:
    """That must be there for a run to begin: those of the ranks and of the fewest engines, at least one."""
    rollout, train = config.rollout, config.train
    fewest = rollout.engines if rollout.min_engines is None else max(1, rollout.min_engines)
    return fewest * rollout.gpus_per_engine + train.ranks * train.gpus_per_rank


def gpus_lacking(config: KrayConfig, gpus: int) -> str:
    """What to say where a run asks for more GPUs than there are; else ""."""
    rollout, train = config.rollout, config.train
    if gpus_asked(config) <= gpus:
        return ""
    parts = f"train.ranks {train.ranks} x train.gpus_per_rank {train.gpus_per_rank} + engines x rollout.gpus_per_engine"
    return (
        f"train.gpus_per_rank, rollout.gpus_per_engine: {parts} {rollout.gpus_per_engine} = {gpus_asked(config)} GPUs, and "
        f"this machine has {gpus}: set both to 0, or submit to a cluster (jobs/submit.py)"
    )


def shortages(config: KrayConfig, cpus: int, gpus: int) -> list[str]:
    """What a run would lack on a machine with so many cores and GPUs, a sentence each, GPUs first."""
    found, wanted = [gpus_lacking(config, gpus)], requested(config)[0]
    if wanted > cpus:
        found.append(
            f"train.ranks {config.train.ranks} and rollout.engines {config.rollout.engines} ask for {wanted} CPUs, and this "
            f"machine has {cpus}: they take turns, and more of them make nothing faster"
        )
    return [line for line in found if line]


def shortages_here(config: KrayConfig) -> list[str]:
    """Of this machine; nothing to say where the run goes into a cluster."""
    return [] if joins_cluster() else shortages(config, os.cpu_count() or 1, _gpus_here(config))


def require_gpus(config: KrayConfig) -> None:
    """Raises ConfigError rather than let Ray wait for GPUs that never come."""
    lacking = "" if joins_cluster() else gpus_lacking(config, _gpus_here(config))
    if lacking:
        raise ConfigError(lacking)


def _gpus_here(config: KrayConfig) -> int:
    """GPUs of this machine; not looked for where none is asked for, since importing torch takes seconds."""
    if not gpus_asked(config):
        return 0
    import torch

    return torch.cuda.device_count()
