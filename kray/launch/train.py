"""Starts a training: checks all that can be checked before, announces what is going to happen, and runs the driver."""

from __future__ import annotations

from pathlib import Path

from kray.cluster.resources import require_gpus
from kray.cluster.session import connect
from kray.config import KrayConfig, warnings
from kray.config.resume import note_changes
from kray.driver.console import end_report
from kray.driver.remote import run_on_cluster, share_prompts
from kray.driver.run_folder import run_folder
from kray.errors import ConfigError
from kray.launch.opening import opening
from kray.launch.preflight import load_checked_prompts
from kray.train.checkpoints import newest_intact
from kray.train.start_model import find_model


def train(config: KrayConfig, checkpoint: Path | None) -> str:
    """Train to the end.

    Args:
        config: The configuration of the run.
        checkpoint: To go on from, None for a new run.

    Returns:
        A report for people: what came out, and what to do next.

    Raises:
        ConfigError: The run cannot begin with this configuration; nothing was started.
        DataError: The prompts cannot be used; nothing was started.
        KrayError: The run failed.
    """
    prompts = load_checked_prompts(config)
    checkpoint = intact(checkpoint, set_aside=True)
    folder = checkpoint.parent.parent.absolute() if checkpoint else None
    for line in note_changes(config, folder) if folder else []:
        print(line)
    for line in opening(config, prompts, folder, int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0):
        print(line, flush=True)
    for line in warnings(config):
        print(f"warning: {line}", flush=True)
    require_gpus(config)
    model = find_model(config)
    folder = folder or run_folder(config)
    connect(config)
    shared = share_prompts(prompts)
    # The job keeps no copy while the driver runs.
    del prompts
    return end_report(run_on_cluster(config, model, folder, checkpoint, "run", prompts=shared))


def intact(checkpoint: Path | None, set_aside: bool) -> Path | None:
    """Return the checkpoint, or the newest one before it that is whole.

    Args:
        checkpoint: The checkpoint to go on from, None for a new run.
        set_aside: Damaged checkpoints are renamed, so that no other run finds them.

    Raises:
        ConfigError: None is left.
    """
    if checkpoint is None:
        return None
    found = newest_intact(checkpoint, set_aside=set_aside)
    if found is None:
        raise ConfigError("resume: no checkpoint is left; start a new run")
    return found
