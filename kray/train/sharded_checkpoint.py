"""The learner's part of a checkpoint: written by all ranks together, at once or in the background.

Guarantees
- What is written is the state at the time of the call, whatever the learner does meanwhile.
- Each rank leaves the checksums of its files, computed from what it wrote, in checksums-<rank>.json for checkpoints.py.
- The background write uses a process group of its own, so that its collectives never mix with those of training.
- Reading runs no code from the files and opens no others: only tensors are read, and of the pickle that torch writes as
  .metadata only torch's own descriptions of them, which may name files of the folder alone.
- A folder without .metadata is not a checkpoint: torch writes that file last. checkpoints.py commits the whole folder.
"""

from __future__ import annotations

import json
import pickle
import threading
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from kray.errors import KrayError, StorageError
from kray.train.process_group import first_problem
from kray.train.summed_files import SummedFiles

# What torch raises on files that were not written by it, or not completely.
DAMAGE = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)


class CheckpointWriter:
    """One rank's writer of checkpoints.

    `start` is a collective; `poll` and `finish` concern this rank only, and `poll` never waits.
    """

    def __init__(self, rank: int, timeout_s: float):
        self.rank = rank
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self, folder: Path, state: dict[str, Tensor], own: dict[str, Any], background: bool) -> None:
        """Write a checkpoint; returns when the state may change again. A collective.

        The failure of an earlier write is dropped: ranks may notice it at different times and must not diverge here.

        Args:
            folder: Where to write; made when missing.
            state: Sharded tensors by name.
            own: What belongs to this rank only.
            background: Copy the state and write it in a thread.

        Raises:
            StorageError: A rank could not write, if not in the background.
        """
        self.wait()
        if background:
            copied = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
            self.thread = threading.Thread(target=self._guarded, args=(folder, copied, own), name="kray-checkpoint")
            self.thread.start()
        else:
            self._write(folder, state, own)

    def _write(self, folder: Path, state: dict[str, Tensor], own: dict[str, Any]) -> None:
        """Write on all ranks together; all raise StorageError when one of them cannot."""
        problem = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(own, folder / f"rank-{self.rank}.pt")
        except (OSError, RuntimeError) as error:
            # torch raises a RuntimeError when the disk is full.
            problem = f"rank {self.rank} could not write: {_reason(error)}"
        problem = first_problem(problem, self.group)
        if problem:
            raise StorageError(f"checkpoint: {problem}")
        writer = dcp.FileSystemWriter(str(folder))
        writer.fs = files = SummedFiles()
        try:
            dcp.save(state, storage_writer=writer, process_group=self.group)
        except (OSError, dcp.api.CheckpointException) as error:
            raise StorageError(f"checkpoint: a rank could not write: {_reason(error)}") from error
        try:
            (folder / f"checksums-{self.rank}.json").write_text(json.dumps(files.checksums))
        except OSError as error:
            problem = f"rank {self.rank} could not write: {_reason(error)}"
        problem = first_problem(problem, self.group)
        if problem:
            raise StorageError(f"checkpoint: {problem}")

    def _guarded(self, folder: Path, state: dict[str, Tensor], own: dict[str, Any]) -> None:
        try:
            self._write(folder, state, own)
        except BaseException as error:
            # `finish` raises it.
            self.error = error

    def poll(self) -> bool:
        """Return whether nothing is being written.

        Raises:
            KrayError: The last write failed.
        """
        if self.thread is not None and self.thread.is_alive():
            return False
        self.finish()
        return True

    def wait(self) -> BaseException | None:
        """Wait for the write in progress, if any; return why it failed, once."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        return error

    def finish(self) -> None:
        """Wait for the write in progress, if any.

        Raises:
            KrayError: It failed.
        """
        error = self.wait()
        if isinstance(error, StorageError):
            raise error
        if error is not None:
            raise KrayError(f"checkpoint: rank {self.rank} could not write: {_reason(error)}") from error


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of this rank's random numbers, by "cpu" and where it has one "cuda"."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state()} if device.type == "cuda" else states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore `random_states`, also those of a rank on another kind of device."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def _reason(error: BaseException) -> str:
    """Return the error as one line; torch's checkpoints wrap the errors of each rank."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]


def read_checkpoint(folder: Path, state: dict[str, Tensor], rank: int) -> tuple[dict[str, Any], bool]:
    """Load a checkpoint into live tensors.

    A collective where there is a process group; a process without one loads everything by itself.

    Args:
        folder: What `CheckpointWriter.start` wrote.
        state: Tensors to load into, by name.
        rank: This rank.

    Returns:
        The `own` of this rank, or of rank 0 where this rank wrote none; and whether it is this rank's.

    Raises:
        KrayError: The folder is not a checkpoint of such a learner, or cannot be read.
    """
    if not (folder / ".metadata").is_file():
        raise KrayError(f"learner: {folder} holds no learner checkpoint (no .metadata); nothing was loaded")
    reader = _Reader(str(folder))
    try:
        names = reader.read_metadata().state_dict_metadata.keys()
    except Exception as error:
        # A pickle can fail in any way.
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise KrayError(f"learner: {folder / '.metadata'} cannot be read: {why}") from error
    missing = sorted(state.keys() - names)
    if missing:
        raise KrayError(
            f"learner: {folder} was written by another kind of learner: {missing[0]} is missing (and {len(missing) - 1} "
            "more); model.lora must be as it was"
        )
    mine = folder / f"rank-{rank}.pt"
    try:
        with warnings.catch_warnings():
            # An export needs no process group.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, storage_reader=reader)
        return torch.load(mine if mine.is_file() else folder / "rank-0.pt", weights_only=True), mine.is_file()
    except (*DAMAGE, pickle.UnpicklingError, dcp.api.CheckpointException) as error:
        raise StorageError(f"learner: {folder} cannot be read: {_reason(error)}") from error


class _Reader(dcp.FileSystemReader):
    """Reads .metadata without running code from it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        with self.fs.create_stream(self._get_metadata_path(kwargs.get("rank")), "rb") as file:
            metadata = _Descriptions(file).load()
        _check(metadata, Path(self.path))
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


def _check(metadata: Any, folder: Path) -> None:
    """Check that descriptions are of tensors in files of this folder.

    Raises:
        ValueError: They are not.
    """
    tensors, stored = metadata.state_dict_metadata, metadata.storage_data
    if not all(isinstance(name, str) and isinstance(tensor, TensorStorageMetadata) for name, tensor in tensors.items()):
        raise ValueError("it describes something else than tensors")
    files = set()
    for place in stored.values():
        numbers = (place.offset, place.length)
        if place.transform_descriptors or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("it describes something else than a part of a file")
        files.add(place.relative_path)
    for name in files:
        if not (isinstance(name, str) and name.endswith(".distcp") and name == Path(name).name):
            raise ValueError(f"it names {str(name)[:100]!r}, which is no file of the checkpoint")
        # What is missing is reported when it is read.
        if (folder / name).exists() and not (folder / name).is_file():
            raise ValueError(f"{name} is no file")


class _Descriptions(pickle.Unpickler):
    """Loads descriptions of tensors only: torch would later unpickle the objects that other descriptions name."""

    _KNOWN = {  # noqa: RUF012
        "torch.distributed.checkpoint.metadata": (
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        ),
        "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
        "torch.serialization": ("_get_layout",),
        "pathlib": ("PosixPath", "PurePosixPath"),
        "torch": ("Size",),
    }

    def find_class(self, module: str, name: str) -> Any:
        known = name in self._KNOWN.get(module, ())
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which does not describe a tensor")
