"""The lock of a folder that a job writes: a run, a comparison, the state of a service, an export."""

from __future__ import annotations

from pathlib import Path

from kray.cluster.folder_lock import FolderLock
from kray.cluster.lost_ray import is_gone, this_job
from kray.driver.provenance import submission_id

# What a job that trains does, for whoever is refused.
TRAINING = "a training"


def lock_folder(path: Path, work: str, beside: bool = False) -> FolderLock:
    """Lock what this job writes.

    Args:
        path: The folder; it is made where there is none. With `beside` also a file.
        work: What the job does, for whoever is refused.
        beside: Leave the path as it is: the lock is beside it, and removed in the end.

    Raises:
        ConfigError: Another job works there; the message names it and how to stop it.
    """
    job = submission_id()
    return FolderLock.acquire(path, work, f"ray job stop {job}" if job else "", beside, is_gone=is_gone)


def note_ray(lock: FolderLock) -> None:
    """Note the Ray job that this process is, so that others learn from Ray that it has ended."""
    lock.note(this_job())
