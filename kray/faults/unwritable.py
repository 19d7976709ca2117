"""Folders that cannot be written for a while. Needs root: a mount hides that they can."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only for all processes that open files there from now on."""
    subprocess.run(["mount", "--bind", "-o", "ro", str(folder), str(folder)], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


def writable(folder: Path) -> bool:
    """Return whether files can be made in a folder, room on its disk aside."""
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
    except OSError as error:
        return error.errno != errno.EROFS
    return True
