"""Checkpoint folders: written completely or not at all, and found again. Standard library only.

A run folder holds

    checkpoints/step-000020/state.json    the driver's state, written last: without it the folder is no checkpoint
    checkpoints/step-000020/files.json    size and CRC-32 of all other files but state.json
    checkpoints/step-000020/learner/      model and optimizer, written by the learner ranks with their checksums
    checkpoints/step-000020/past-10.pt    an older version of the policy that is an opponent, refreshed every 10 steps
    checkpoints/.tmp-step-000040/         being written, or being removed
    checkpoints/.old-step-000040/         being replaced
    checkpoints/.aside-step-000060/       damaged, or later than the step resumed from; removed once a step >= 60 is saved

Guarantees: `newest_checkpoint` returns a complete checkpoint, whatever process was killed while writing. An older checkpoint
is removed only after a newer one is complete and on disk. `newest_intact` reads every byte before it returns one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kray.errors import ConfigError, KrayError, StorageError

logger = logging.getLogger(__name__)

STATE = "state.json"
FILES = "files.json"
# Threads that compute checksums; reading is bound by the disk beyond a few.
READERS = 4
FOLDER = "checkpoints"
# What a learner rank leaves beside the files that it wrote: their sizes and CRC-32s, by name.
RANK_CHECKSUMS = re.compile(r"checksums-\d+\.json")
STEP = re.compile(r"step-(\d{6,})")


def _steps(run_folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of a run's complete checkpoints, oldest first.

    `.old-step-N` counts where step-N is missing: its writer was killed between the two renames of a replacement.
    """
    folder_of = {}
    for folder in [*(run_folder / FOLDER).glob(".old-step-*"), *(run_folder / FOLDER).glob("step-*")]:
        match = STEP.fullmatch(folder.name.removeprefix(".old-"))
        if match and (folder / STATE).is_file():
            folder_of[int(match[1])] = folder
    return sorted(folder_of.items())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _checksum(file: Path) -> list[int]:
    """Return a file's size in bytes and its CRC-32."""
    size = crc = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _checksums(folder: Path, names: list[str]) -> dict[str, list[int]]:
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(_checksum, [folder / name for name in names]), strict=True))


def _all_checksums(folder: Path, names: list[str]) -> dict[str, list[int]]:
    """Return the checksums of files; those that learner ranks computed while they wrote are taken from what they left.

    Raises:
        StorageError: A file is not as long as what was written into it.
    """
    known: dict[str, list[int]] = {}
    for name in names:
        if RANK_CHECKSUMS.fullmatch(Path(name).name):
            of_rank = json.loads((folder / name).read_text())
            known |= {str(Path(name).with_name(file)): checksum for file, checksum in of_rank.items()}
    for name, (size, _) in known.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if found != size:
            raise StorageError(f"checkpoint: {folder / name} has {found} bytes, {size} were written")
    return _checksums(folder, [name for name in names if name not in known]) | known


def _expected(checkpoint: Path) -> dict[str, list[int]]:
    """Return the checksums in files.json, {} where there is none.

    Raises:
        ValueError: It is something else, or names what is no file of the checkpoint; that is never opened.
    """
    file = checkpoint / FILES
    if not file.exists():
        return {}
    expected = json.loads(file.read_text())
    if not isinstance(expected, dict) or not all(isinstance(x, list) and len(x) == 2 for x in expected.values()):
        raise ValueError(f"{file} holds no checksums by name")
    for name in expected:
        # A link may lead to another disk, but no name may lead out of the folder.
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{file} names {name[:100]!r}, which is no file of the checkpoint")
        if (checkpoint / name).exists() and not (checkpoint / name).is_file():
            raise ValueError(f"{checkpoint / name} is no file")
    return expected


def find_damage(checkpoint: Path) -> str:
    """Compare a complete checkpoint with its checksums; one without checksums passes.

    Returns:
        What is wrong, "" for nothing.
    """
    try:
        read_state(checkpoint)
        expected = _expected(checkpoint)
        found = _checksums(checkpoint, list(expected))
    except (OSError, ValueError, RecursionError, KrayError) as error:
        return str(error)
    wrong = [name for name in expected if found[name] != expected[name]]
    if wrong:
        sizes = f"{found[wrong[0]][0]} bytes, {expected[wrong[0]][0]} were written"
        return f"{len(wrong)} of {len(expected)} files differ from what was written, first {wrong[0]} ({sizes})"
    return ""


def newest_intact(checkpoint: Path | None, set_aside: bool = True) -> Path | None:
    """Return this checkpoint or the newest earlier one that is not damaged; log those that are.

    Args:
        checkpoint: A complete checkpoint, or None.
        set_aside: Whether damaged checkpoints are renamed, so that they are not found again.
    """
    while checkpoint is not None and (wrong := find_damage(checkpoint)):
        run_folder, step = checkpoint.parent.parent, int(checkpoint.name.rsplit("-", 1)[1])
        if set_aside:
            _set_aside(checkpoint)
        earlier = [folder for number, folder in _steps(run_folder) if number < step]
        logger.info(f"checkpoint {checkpoint} is damaged: {wrong}; taking {earlier[-1] if earlier else 'none'} instead")
        checkpoint = earlier[-1] if earlier else None
    return checkpoint


def _set_aside(checkpoint: Path) -> None:
    aside = checkpoint.with_name(f".aside-{checkpoint.name.removeprefix('.old-')}")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def newest_checkpoint(run_folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    steps = _steps(Path(run_folder))
    return steps[-1][1] if steps else None


def checkpoint_at_step(run_folder: Path, step: int) -> Path:
    """Return the complete checkpoint of one step of a run.

    Raises:
        ConfigError: There is none; the message lists the steps that have one.
    """
    folder_of = dict(_steps(Path(run_folder)))
    if step not in folder_of:
        available = ", ".join(map(str, folder_of)) or "none"
        raise ConfigError(f"{run_folder} holds no complete checkpoint of step {step}; available steps: {available}")
    return folder_of[step]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the driver's state in a checkpoint.

    Raises:
        KrayError: The file cannot be read.
    """
    file = Path(checkpoint) / STATE
    try:
        state = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise KrayError(f"checkpoint {checkpoint}: {file} cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise KrayError(f"checkpoint {checkpoint}: {file} holds no state")
    return state


class CheckpointStore:
    """The checkpoints of one run; one process at a time writes.

    Usage: `folder = store.begin(20)`, the learners write into folder / "learner", `store.commit(20, state)`.

    Attributes:
        prune_problem: What the newest `commit` could not remove, and why; "" for nothing.
    """

    def __init__(self, run_folder: str | Path, keep: int, check: Callable[[], None] = lambda: None):
        """Open a run's checkpoints and clean up after a writer that was killed.

        Args:
            run_folder: The run's folder.
            keep: Number of complete checkpoints to keep, at least 1.
            check: Called before anything is changed; raises where this process may not write any more.

        Raises:
            ConfigError: `keep` is less than 1.
        """
        if keep < 1:
            raise ConfigError(f"run.keep_checkpoints is {keep}; it must be at least 1")
        self.run_folder = Path(run_folder)
        self.folder = self.run_folder / FOLDER
        self.keep, self._check = keep, check
        self.prune_problem = ""
        check()
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(".old-step-*"):
            if self._path(old.name.removeprefix(".old-")).exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                # The writer was killed between the two renames in `commit`.
                old.rename(self._path(old.name.removeprefix(".old-")))
        for unfinished in self.folder.glob(".tmp-step-*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / name

    def begin(self, step: int) -> Path:
        """Return an empty temporary folder for the checkpoint of `step`, with `learner/` in it."""
        self._check()
        folder = self._path(f".tmp-step-{step:06d}")
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "learner").mkdir(parents=True)
        return folder

    def commit(self, step: int, state: Mapping[str, Any]) -> Path:
        """Make what was written since `begin(step)` the checkpoint of `step`, then remove the oldest ones.

        An earlier checkpoint of the same step is replaced. What cannot be removed is described by `prune_problem`; the next
        commit tries again.

        Args:
            step: The step.
            state: The driver's state, JSON values.

        Returns:
            The checkpoint's folder.

        Raises:
            KrayError: `begin` was not called.
            StorageError: A file is not as long as what a rank wrote into it.
        """
        unfinished, final = self._path(f".tmp-step-{step:06d}"), self._path(f"step-{step:06d}")
        if not unfinished.is_dir():
            raise KrayError(f"checkpoint of step {step}: {unfinished} is gone; call begin({step}) first")
        self._check()
        names = sorted(str(file.relative_to(unfinished)) for file in unfinished.rglob("*") if file.is_file())
        (unfinished / FILES).write_text(json.dumps(_all_checksums(unfinished, names)) + "\n")
        # All other files must be on disk before state.json marks the checkpoint as complete.
        _sync_tree(unfinished)
        (unfinished / STATE).write_text(json.dumps(state, indent=2) + "\n")
        _sync(unfinished / STATE)
        _sync(unfinished)
        # Writing to a slow disk may take longer than a lock lasts.
        self._check()
        old = self._path(f".old-step-{step:06d}")
        if final.exists():
            # One that could not be removed when it was replaced.
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        unfinished.rename(final)
        _sync(self.folder)
        try:
            self.prune_problem = self._prune(step)
        except OSError as error:
            # The checkpoint itself is on disk.
            self.prune_problem = f"{self.folder}: older checkpoints could not be removed ({error})"
        return final

    def discard(self, step: int) -> None:
        """Remove what was written since `begin(step)`."""
        self._check()
        shutil.rmtree(self._path(f".tmp-step-{step:06d}"), ignore_errors=True)

    def set_aside_after(self, step: int) -> list[str]:
        """Set aside the checkpoints of later steps, which a resumed run no longer leads to, and return their names."""
        self._check()
        later = [folder for number, folder in _steps(self.run_folder) if number > step]
        for folder in later:
            _set_aside(folder)
        return [folder.name for folder in later]

    def _prune(self, step: int) -> str:
        """Remove what is no longer needed now that `step` is on disk; return a message on what could not be removed."""
        removable = [*self.folder.glob(".tmp-step-*")]
        removable += [
            old for old in self.folder.glob(".old-step-*") if self._path(old.name.removeprefix(".old-")).exists()
        ]
        removable += [aside for aside in self.folder.glob(".aside-step-*") if int(aside.name.rsplit("-", 1)[1]) <= step]
        surplus = [folder for number, folder in _steps(self.run_folder)[: -self.keep] if number != step]
        problems = []
        for folder in [*removable, *surplus]:
            try:
                hidden = self._path(f".tmp-{folder.name.removeprefix('.old-')}")
                # A folder that is half removed must not look complete.
                shutil.rmtree(folder.rename(hidden) if folder in surplus else folder)
            except OSError as error:
                problems.append(f"{folder.name} ({error.strerror or error})")
        return f"{self.folder}: {', '.join(problems)} could not be removed" if problems else ""

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, or None."""
        return newest_checkpoint(self.run_folder)


def find_checkpoint(resume: str, runs_dir: str | Path = "", name: str = "") -> Path | None:
    """Return the checkpoint that a `resume` setting refers to.

    Args:
        resume: "" for none; a checkpoint; a run folder, whose newest checkpoint counts; or "auto": of the folders
            `<name>-<date...>` in runs_dir (the date beginning YYYYMMDD or YYYY-MM-DD) the one whose newest checkpoint
            was written last, so that the same command starts a run and continues it after a preemption.
        runs_dir: For "auto", where the run folders are.
        name: For "auto", the run's name.

    Returns:
        The checkpoint's folder; None for "" and where "auto" finds none.

    Raises:
        ConfigError: A path holds no complete checkpoint.
    """
    if not resume:
        return None
    if resume == "auto":
        pattern = re.compile(re.escape(name) + r"-\d{4}-?\d{2}-?\d{2}.*")
        folders = Path(runs_dir).expanduser().glob("*")
        checkpoints = [newest_checkpoint(folder) for folder in folders if pattern.fullmatch(folder.name)]
        complete = [checkpoint for checkpoint in checkpoints if checkpoint]
        return max(complete, key=lambda folder: ((folder / STATE).stat().st_mtime_ns, str(folder)), default=None)
    path = Path(resume).expanduser()
    if not path.is_dir():
        raise ConfigError(f"resume: {path} is not a folder")
    if (path / STATE).is_file():
        return path
    checkpoint = newest_checkpoint(path)
    if checkpoint is None:
        raise ConfigError(f"resume: {path} is not a complete checkpoint and holds none in {FOLDER}/")
    return checkpoint
