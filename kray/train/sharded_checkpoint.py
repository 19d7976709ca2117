"""A learner's part of a checkpoint: written by all ranks together, at once or in the background.

Promises
- What is written is the state at the call, whatever the learner does while it is being written.
- The background write talks over a process group of its own, so that its collectives never meet those of training.
- Reading runs nothing that a file asks for: tensors alone are read, and of the pickle that torch writes as .metadata only
  torch's own descriptions of them.
- A folder without .metadata is no checkpoint: torch writes that file last. Who commits the folder as a whole is
  checkpoints.py's business.
"""

from __future__ import annotations

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

from kray.errors import KrayError, StorageError


class CheckpointWriter:
    """One rank's writer. `start` is a collective; `done` is not and never waits; `finish` waits for this rank's write."""

    def __init__(self, rank: int, timeout_s: float):
        self.rank = rank
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self, folder: Path, state: dict[str, Tensor], own: dict[str, Any], background: bool) -> None:
        """state: sharded tensors by name; own: what this rank alone knows. Returns when the state may change again.

        An earlier write that failed counts no more: ranks that hear of it at different times must not part ways here.
        """
        self.wait()
        if background:
            copied = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
            self.thread = threading.Thread(target=self._guarded, args=(folder, copied, own), name="kray-checkpoint")
            self.thread.start()
        else:
            self._write(folder, state, own)

    def _write(self, folder: Path, state: dict[str, Tensor], own: dict[str, Any]) -> None:
        """All ranks leave it together, and with an error where one of them has one. Raises StorageError."""
        problem = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(own, folder / f"rank-{self.rank}.pt")
        except (OSError, RuntimeError) as error:  # torch tells of a full disk by a RuntimeError
            problem = f"rank {self.rank} could not write: {_reason(error)}"
        problems: list[Any] = [""] * dist.get_world_size(self.group)
        dist.all_gather_object(problems, problem, group=self.group)
        if any(problems):
            raise StorageError(f"checkpoint: {next(filter(None, problems))}")
        try:
            dcp.save(state, checkpoint_id=str(folder), process_group=self.group)
        except (OSError, dcp.api.CheckpointException) as error:
            raise StorageError(f"checkpoint: a rank could not write: {_reason(error)}") from error
        dist.barrier(self.group)

    def _guarded(self, folder: Path, state: dict[str, Tensor], own: dict[str, Any]) -> None:
        try:
            self._write(folder, state, own)
        except BaseException as error:  # raised where the write is waited for
            self.error = error

    def done(self) -> bool:
        """Whether nothing is being written. Raises KrayError if the last write failed."""
        if self.thread is not None and self.thread.is_alive():
            return False
        self.finish()
        return True

    def wait(self) -> BaseException | None:
        """Until no write is under way; why the last one failed, told once."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        return error

    def finish(self) -> None:
        """Waits for the write under way, if any. Raises KrayError if it failed."""
        error = self.wait()
        if isinstance(error, StorageError):
            raise error
        if error is not None:
            raise KrayError(f"checkpoint: rank {self.rank} could not write: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What happened, on one line: torch's checkpoints wrap what each rank met."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]


def read(folder: Path, state: dict[str, Tensor], rank: int) -> tuple[dict[str, Any], bool]:
    """Loads into the tensors of `state`; returns what this rank had of its own, and whether it was this rank's.

    A collective where there is a process group; a process without one loads everything by itself.
    Raises KrayError that names the folder when it holds no checkpoint of such a learner.
    """
    if not (folder / ".metadata").is_file():
        raise KrayError(f"learner: {folder} holds no learner checkpoint (no .metadata); nothing was loaded")
    reader = _Reader(str(folder))
    try:
        names = reader.read_metadata().state_dict_metadata.keys()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise KrayError(f"learner: {folder / '.metadata'} cannot be read: {error}") from error
    missing = sorted(state.keys() - names)
    if missing:
        raise KrayError(
            f"learner: {folder} is of another kind of learner: it has no {missing[0]} (and {len(missing) - 1} more); "
            "model.lora must be as it was"
        )
    mine = folder / f"rank-{rank}.pt"
    try:
        with warnings.catch_warnings():
            # an export needs no process group
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, storage_reader=reader)
        return torch.load(mine if mine.is_file() else folder / "rank-0.pt", weights_only=True), mine.is_file()
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, dcp.api.CheckpointException) as error:
        raise StorageError(f"learner: {folder} cannot be read: {_reason(error)}") from error


class _Reader(dcp.FileSystemReader):
    """Reads .metadata without running what is in it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        with self.fs.create_stream(self._get_metadata_path(kwargs.get("rank")), "rb") as file:
            metadata = _Descriptions(file).load()
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _Descriptions(pickle.Unpickler):
    """Knows tensors' descriptions, and no others: those of pickled objects would have torch unpickle them later."""

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
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which describes no tensor")
