"""Ranks leave the checksums of what they wrote: a checkpoint is committed without reading it back, and damage is found."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from kray.errors import StorageError
from kray.train import checkpoints
from kray.train.checkpoints import CheckpointStore, find_damage


@pytest.fixture
def unfinished(models, make, tmp_path):
    """(store, folder) of a checkpoint that a learner has written and nobody committed."""
    store = CheckpointStore(tmp_path, 2)
    folder = store.begin(5)
    make(models[True]).save(folder / "learner")
    return store, folder


def test_shards_are_not_read_back(unfinished, monkeypatch):
    store, _ = unfinished
    read, checksum = [], checkpoints._checksum
    monkeypatch.setattr(checkpoints, "_checksum", lambda file: (read.append(file.name), checksum(file))[1])
    final = store.commit(5, {})
    assert sorted(read) == ["checksums-0.json", "rank-0.pt"]
    listed = json.loads((final / "files.json").read_text())
    assert {"learner/__0_0.distcp", "learner/.metadata", "learner/rank-0.pt"} <= listed.keys()
    for name, (size, crc) in listed.items():
        content = (final / name).read_bytes()
        assert (len(content), zlib.crc32(content)) == (size, crc), name
    assert find_damage(final) == ""


def test_a_corrupted_shard_is_named(unfinished):
    store, folder = unfinished
    shard = folder / "learner" / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    # Before the commit, as by a disk that did not keep what was written.
    shard.write_bytes(content)
    final = store.commit(5, {})
    assert "files differ from what was written, first learner/__0_0.distcp" in find_damage(final)


def test_a_shard_that_was_cut_off_is_not_committed(unfinished):
    store, folder = unfinished
    shard: Path = folder / "learner" / "__0_0.distcp"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(StorageError, match=rf"__0_0\.distcp has 100 bytes, {size} were written"):
        store.commit(5, {})
    assert store.newest() is None
