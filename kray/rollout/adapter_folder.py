"""A folder in memory through which adapters are handed to vLLM, and the end of those that killed engines have left.

Its process holds a lock on the folder, which ends with the process, however it ends. So what nobody holds is a leftover, and
the next adapters of any engine on the node remove it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# How the names of folders that are held begin, and those of folders that are not held yet.
PREFIX, UNHELD = "kray-adapters-", ".kray-unheld-"


@contextlib.contextmanager
def adapter_folder(parent: Path | None = None) -> Iterator[Path]:
    """Provide an empty folder, and remove it and those of processes that have ended.

    Args:
        parent: Where folders are; None: in memory, where the machine has such a file system.
    """
    memory = Path("/dev/shm")
    parent = parent or (memory if memory.is_dir() else Path(tempfile.gettempdir()))
    for left in parent.glob(f"{PREFIX}*"):
        _remove_unless_held(left)
    # Nobody looks at it before it is held.
    made = Path(tempfile.mkdtemp(prefix=UNHELD, dir=parent))
    with _held(made):
        folder = made.rename(parent / made.name.replace(UNHELD, PREFIX, 1))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_unless_held(folder: Path) -> None:
    # It is held, another process removes it as well, or it is another user's.
    with contextlib.suppress(OSError), _held(folder):
        shutil.rmtree(folder)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Raises:
        OSError: Another process holds it, or the folder cannot be read.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
