"""A checkpoint that cannot be written is a StorageError; the learner goes on and can save later."""

from __future__ import annotations

import contextlib
import resource
import time

import pytest
from state_digest import state_digest

from kray.errors import StorageError


@contextlib.contextmanager
def small_files(limit: int):
    """No file of this process grows over so many bytes: Python and torch see the error of a write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wait(learner) -> None:
    while not learner.saved():
        time.sleep(0.01)


@pytest.mark.parametrize("limit", [16, 12_000])  # in the rank's own file, in the shards
def test_a_full_disk_costs_one_checkpoint_and_nothing_else(models, make, tmp_path, limit):
    learner = make(models[True])
    before = state_digest(learner.state())
    with small_files(limit):
        learner.save(tmp_path / "background", background=True)
        with pytest.raises(StorageError, match="could not write"):
            wait(learner)
        with pytest.raises(StorageError, match="could not write"):
            learner.save(tmp_path / "at once")
        learner.save(tmp_path / "nobody asks", background=True)
        learner.writer.thread.join()
    learner.save(tmp_path / "room again", background=True)
    wait(learner)
    learner.load(tmp_path / "room again")
    assert state_digest(learner.state()) == before
    shard = max((tmp_path / "room again").iterdir(), key=lambda file: file.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(StorageError, match="cannot be read"):
        learner.load(tmp_path / "room again")
