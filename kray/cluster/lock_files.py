"""The files of a lock: how a generation is made, read and recognised as free; see kray/cluster/folder_lock.py."""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kray.cluster.process_identity import is_dead, this_process

LOCK = re.compile(r"(\d+)\.json")
# Errors of link(2) on file systems without hard links.
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


@dataclass(frozen=True, slots=True)
class Held:
    """A lock as others see it.

    Attributes:
        files: The folder of the lock's files.
        generation: Its number.
        owner: Who holds it; {} where its file cannot be read.
        released: The owner has given it up.
    """

    files: Path
    generation: int
    owner: Mapping[str, Any]
    released: bool

    @property
    def free(self) -> bool:
        """Whether it is released, or all processes of its owner are known to be dead."""
        return self.released or all(is_dead(each) for each in [self.owner, *read_beats(self.files, self.generation)])

    @property
    def described(self) -> str:
        """The owner, for people."""
        if not self.owner:
            return "an owner whose name cannot be read"
        found = {"user": "?", "host": "?", "pid": "?", "since": "?", "work": "work", **self.owner}
        return "{user} on {host} ({work}, process {pid}, since {since})".format(**found)

    @property
    def noted(self) -> Mapping[str, Any]:
        """What the owner has noted."""
        return _read(self.files / f"{self.generation}.note")

    @property
    def how_to_stop(self) -> str:
        """How to have the owner save and end, for people."""
        pid, host = self.owner.get("pid", "its process"), self.owner.get("host", "its host")
        return f"to have it save and end: {self.owner.get('stop') or f'kill {pid} on {host}'}"

    def beats(self) -> tuple[bytes, ...]:
        """Return what changes while one of the owner's processes lives."""
        found = []
        for file in _beat_files(self.files, self.generation):
            with contextlib.suppress(OSError):
                found.append(file.read_bytes())
        return tuple(found)


def newest(files: Path) -> Held | None:
    """Return the lock with the highest generation, None where there is none.

    Args:
        files: The folder of the lock's files.

    Raises:
        OSError: It cannot be read.
    """
    numbers = [int(match[1]) for name in os.listdir(files) if (match := LOCK.fullmatch(name))]
    if not numbers:
        return None
    number = max(numbers)
    return Held(files, number, _read(files / f"{number}.json"), (files / f"{number}.released").exists())


def take(files: Path, before: Held | None, owner: Mapping[str, Any], beats: tuple[bytes, ...] | None) -> int:
    """Make the generation after `before`; return 0 where another process came first, or its owner lives after all.

    Args:
        files: The folder of the lock's files.
        before: The lock that is free or stale.
        owner: Who takes it.
        beats: Those of a stale lock; None: it is free.
    """
    number, content = before.generation + 1 if before else 1, json.dumps(owner) + "\n"
    draft, lock = files / f".new-{owner['token']}", files / f"{number}.json"
    try:
        draft.write_text(content)
        if not _link(draft, lock, content):
            return 0
    except FileNotFoundError:
        # Another one has removed the draft or the folder while it cleaned up.
        return 0
    finally:
        draft.unlink(missing_ok=True)
    top = newest(files)
    if top is None or top.generation != number or (before and beats is not None and before.beats() != beats):
        lock.unlink(missing_ok=True)
        return 0
    for name in os.listdir(files):
        digits = name.partition(".")[0]
        if name.startswith(".new-") or (digits.isdigit() and int(digits) < number):
            (files / name).unlink(missing_ok=True)
    return number


def _link(draft: Path, lock: Path, content: str) -> bool:
    """Give the draft the lock's name, if nothing has it."""
    try:
        os.link(draft, lock)
    except FileExistsError:
        # A server whose first reply was lost reports the link that it has made.
        return draft.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            with lock.open("x") as file:
                file.write(content)
        except FileExistsError:
            return False
    return True


def owner_of(work: str, stop: str) -> dict[str, Any]:
    """Describe this process as the owner of a lock, with a token of its own."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = f"user {os.getuid()}"
    since, token = time.strftime("%Y-%m-%d %H:%M:%S %z"), secrets.token_hex(8)
    return {"user": user, "work": work, "stop": stop, "since": since, "token": token, **this_process()}


def _beat_files(files: Path, generation: int) -> list[Path]:
    return sorted(files.glob(f"{generation}.*.beat"))


def read_beats(files: Path, generation: int) -> list[Mapping[str, Any]]:
    """Return which processes beat for a generation; {} for one that cannot be read."""
    return [_read(file) for file in _beat_files(files, generation)]


def _read(file: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file; {} where it cannot be read."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
