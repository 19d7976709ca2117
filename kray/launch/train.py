"""Starts a training: checks all that can be checked before, announces what is going to happen, and runs the driver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kray.cluster.folder_lock import LostLock
from kray.cluster.resources import require_gpus
from kray.cluster.session import connect
from kray.config import KrayConfig, warnings
from kray.config.resume import note_changes
from kray.driver.console import end_report
from kray.driver.output import say
from kray.driver.remote import run_on_cluster, share_prompts
from kray.driver.run_folder import run_folder
from kray.driver.run_lock import TRAINING, lock_folder
from kray.errors import ConfigError, DataError, KrayError
from kray.launch.opening import opening
from kray.launch.preflight import load_checked_prompts
from kray.launch.saved import saved_report
from kray.train.checkpoints import newest_checkpoint, newest_intact
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
    with contextlib.ExitStack() as held:
        folder, lock = None, None
        if checkpoint is not None:
            folder = checkpoint.parent.parent.absolute()
            # Before anything of the folder is touched, and before the newest checkpoint is chosen: another job may yet save.
            lock = held.enter_context(lock_folder(folder, TRAINING))
            checkpoint = intact(_newest_now(config, checkpoint), set_aside=True)
        prompts = load_checked_prompts(config)
        for line in note_changes(config, folder) if folder else []:
            say(line)
        step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        for line in opening(config, prompts, folder, step):
            say(line)
        for line in warnings(config):
            say(f"warning: {line}")
        require_gpus(config)
        model = find_model(config)
        if folder is None or lock is None:
            folder = run_folder(config)
            lock = held.enter_context(lock_folder(folder, TRAINING))
        connect(config)
        shared = share_prompts(prompts)
        # The job keeps no copy while the driver runs.
        del prompts
        with _saying_what_is_saved(folder, config):
            return end_report(run_on_cluster(config, model, folder, checkpoint, "run", prompts=shared, lock=lock))


@contextlib.contextmanager
def _saying_what_is_saved(folder: Path, config: KrayConfig) -> Iterator[None]:
    """Add to the message of a run that fails or is interrupted what is saved of it and how to go on."""
    try:
        yield
    except (ConfigError, DataError, LostLock):
        raise
    except KrayError as error:
        raise type(error)(f"{error}\n{saved_report(folder, config.run.steps)}") from error
    except KeyboardInterrupt:
        say(saved_report(folder, config.run.steps))
        raise


def _newest_now(config: KrayConfig, checkpoint: Path) -> Path:
    """Return the checkpoint to go on from: the one that was asked for, else the newest in its run folder now."""
    if Path(config.resume).expanduser().absolute() == checkpoint.absolute():
        return checkpoint
    return newest_checkpoint(checkpoint.parent.parent) or checkpoint


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
