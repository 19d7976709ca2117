"""Files of a checkpoint that somebody else wrote: nothing in them is run, no other is opened, and every error is kray's."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from kray.errors import KrayError
from kray.train.sharded_checkpoint import read_checkpoint

VALUES = {"layer.weight": torch.arange(12.0).reshape(3, 4), "layer.bias": torch.ones(3)}


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of two tensors, as the learner writes it."""
    place = tmp_path / "learner"
    place.mkdir()
    dcp.save(dict(VALUES), checkpoint_id=str(place), no_dist=True)
    torch.save({"step": 3}, place / "rank-0.pt")
    return place


def read(folder: Path):
    state = {name: torch.zeros_like(tensor) for name, tensor in VALUES.items()}
    own, is_own = read_checkpoint(folder, state, 0)
    return state, own, is_own


def metadata_of(folder: Path):
    return pickle.loads((folder / ".metadata").read_bytes())


def write_metadata(folder: Path, metadata) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def refused(folder: Path, match: str = "cannot be read") -> None:
    with pytest.raises(KrayError, match=match):
        read(folder)


def test_own_checkpoint_is_read(folder):
    state, own, is_own = read(folder)
    assert all(torch.equal(state[name], VALUES[name]) for name in VALUES)
    assert (own, is_own) == ({"step": 3}, True)


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "rank-0.pt"])
def test_no_file_runs_code(folder, tmp_path, file):
    ran = tmp_path / "ran"
    (folder / file).write_bytes(pickle.dumps(Planted(ran)))
    refused(folder)
    torch.save({"step": Planted(ran)}, tmp_path / "saved.pt")
    (folder / file).write_bytes((tmp_path / "saved.pt").read_bytes())
    refused(folder)
    assert not ran.exists()


def test_part_of_a_data_file_runs_no_code(folder, tmp_path):
    """A description that calls a tensor bytes would have torch unpickle it."""
    ran, metadata = tmp_path / "ran", metadata_of(folder)
    torch.save(Planted(ran), folder / "__0_0.distcp")
    length = (folder / "__0_0.distcp").stat().st_size
    for place in metadata.storage_data.values():
        place.offset, place.length = 0, length
    write_metadata(folder, metadata)
    refused(folder)
    for name in VALUES:
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
    write_metadata(folder, metadata)
    refused(folder)
    assert not ran.exists()


@pytest.mark.parametrize(
    "path",
    ["../other.distcp", "/etc/passwd", "/dev/zero", "..", ".", "", "a/b.distcp", "rank-0.pt", "x\0.distcp", b"x", None],
)
def test_no_other_file_is_opened(folder, path):
    (folder.parent / "other.distcp").write_bytes((folder / "__0_0.distcp").read_bytes())
    metadata = metadata_of(folder)
    for place in metadata.storage_data.values():
        place.relative_path = path
    write_metadata(folder, metadata)
    refused(folder)


def test_pipe_in_a_files_place_does_not_block(folder):
    (folder / "__0_0.distcp").unlink()
    os.mkfifo(folder / "__0_0.distcp")
    refused(folder, "is no file")


@pytest.mark.parametrize(
    ("name", "value"), [("offset", -1), ("length", 1.5), ("length", "x"), ("transform_descriptors", ["zstd"])]
)
def test_impossible_parts_are_refused(folder, name, value):
    metadata = metadata_of(folder)
    for place in metadata.storage_data.values():
        setattr(place, name, value)
    write_metadata(folder, metadata)
    refused(folder)


@pytest.mark.parametrize("content", [[], {}, None, "x", 7, b"", [[[]]], {"state_dict_metadata": {}}])
def test_other_objects_are_no_metadata(folder, content):
    write_metadata(folder, content)
    refused(folder)


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "rank-0.pt"])
def test_changed_bytes_give_kray_errors_or_tensors(folder, file):
    whole, chance = (folder / file).read_bytes(), random.Random(0)
    for trial in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if trial % 3 == 0:
            del damaged[chance.randrange(len(damaged)) :]
        (folder / file).write_bytes(bytes(damaged))
        # Any other error fails the test.
        with contextlib.suppress(KrayError):
            state, _, _ = read(folder)
            assert all(state[name].shape == VALUES[name].shape for name in VALUES)
