"""What this machine has, for a run that starts a Ray of its own: on a cluster Ray and --check --cluster tell."""

from __future__ import annotations

import os

from kray.config import KrayConfig
from kray.records import ConfigError


def joins_cluster() -> bool:
    """Whether a run goes into a cluster that is there: that of its Ray job, or of RAY_ADDRESS."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or bool(os.environ.get("RAY_ADDRESS"))


def cpus_asked(config: KrayConfig) -> int:
    """Of all engines and learner ranks."""
    rollout, train = config.rollout, config.train
    return rollout.engines * rollout.cpus_per_engine + train.ranks * train.cpus_per_rank


def gpus_asked(config: KrayConfig) -> int:
    """That must be there for a run to begin: those of the ranks and of the fewest engines, at least one."""
    rollout, train = config.rollout, config.train
    fewest = rollout.engines if rollout.min_engines is None else max(1, rollout.min_engines)
    return fewest * rollout.gpus_per_engine + train.ranks * train.gpus_per_rank


def shortages(config: KrayConfig, cpus: int, gpus: int) -> list[str]:
    """What a run would lack on a machine with so many cores and GPUs, a sentence each, GPUs first."""
    rollout, train, found = config.rollout, config.train, []
    if gpus_asked(config) > gpus:
        parts = (
            f"train.ranks {train.ranks} x train.gpus_per_rank {train.gpus_per_rank} + engines x rollout.gpus_per_engine"
        )
        found.append(
            f"train.gpus_per_rank, rollout.gpus_per_engine: {parts} {rollout.gpus_per_engine} = {gpus_asked(config)} GPUs, and "
            f"this machine has {gpus}: set both to 0, or submit to a cluster (jobs/submit.py)"
        )
    if cpus_asked(config) > cpus:
        found.append(
            f"train.ranks {train.ranks} and rollout.engines {rollout.engines} ask for {cpus_asked(config)} CPUs, and this "
            f"machine has {cpus}: they take turns, and more of them make nothing faster"
        )
    return found


def shortages_here(config: KrayConfig) -> list[str]:
    """Of this machine; nothing to say where the run goes into a cluster."""
    if joins_cluster():
        return []
    import torch

    return shortages(config, os.cpu_count() or 1, torch.cuda.device_count())


def require_gpus(config: KrayConfig) -> None:
    """Raises ConfigError rather than let Ray wait for GPUs that never come."""
    lacking = [line for line in shortages_here(config) if "GPUs" in line]
    if lacking:
        raise ConfigError(lacking[0])
