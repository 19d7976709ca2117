"""One writer for a folder, also where several hosts share it over NFS. Standard library only; no flock.

A lock has a generation, a number that only grows. In <folder>/.lock, or beside what is locked, .lock-<name>

    7.json         who holds generation 7; made by link(2), which one process wins, on NFS too
    7.job.beat     one file for each process that works for the owner (its job, its driver), rewritten every few seconds
    7.released     the owner is done

Guarantees
- The owner is who holds the highest generation. The next one is made only after a release, when all processes of the owner
  are known to be dead, or when no beat has changed for `stale_s` seconds of the observer's own clock: clocks of two hosts are
  never compared.
- A process that was stopped, and whose lock was taken meanwhile, notices before it writes: `check` passes only within `lease_s`
  of a beat after which its generation was still the highest. Whoever takes the lock looks at the beats once more afterwards.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kray.cluster.lock_files import Held, newest, owner_of, read_beats, take
from kray.cluster.process_identity import is_dead, this_process
from kray.errors import ConfigError, KrayError

logger = logging.getLogger(__name__)

FOLDER = ".lock"
# Bytes of a beat: rewritten in place, which needs no room on a full disk.
BEAT_BYTES = 512
# Seconds after which somebody who waits for a lock is told so.
SAY_AFTER_S = 5.0
# Seconds for the other processes of an owner to end before its release.
OTHERS_END_S = 10.0


class LostLock(KrayError):
    """Another process has taken the lock: this one must not write any more."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds between two beats, without one until a lock is stale, of a lease, and between two looks of who waits."""

    beat_s: float = 2.0
    stale_s: float = 60.0
    lease_s: float = 15.0
    poll_s: float = 0.2


TIMING = Timing()


@dataclass(frozen=True, slots=True)
class Ticket:
    """A held lock, for other processes of its owner.

    Attributes:
        path: What is locked.
        files: The folder of the lock's files.
        generation: Of the lock.
        token: Drawn when it was taken.
    """

    path: str
    files: str
    generation: int
    token: str


class FolderLock:
    """A lock that this process holds, alone or with others; beats in a thread until it is released or lost.

    Attributes:
        ticket: For other processes of the owner, see `join`.
        lost: Who has taken the lock, "" while it is held.
    """

    def __init__(self, ticket: Ticket, role: str, timing: Timing, on_lost: Callable[[], None] | None = None):
        """Beat for a lock that is held; use `acquire` or `join`.

        Raises:
            LostLock: It is held no more.
        """
        self.ticket, self.role, self.timing, self.on_lost = ticket, role, timing, on_lost
        self.lost, self._remove = "", False
        self._files = Path(ticket.files)
        self._file = self._files / f"{ticket.generation}.{role}.beat"
        self._me, self._count, self._lease_until = this_process(), 0, 0.0
        self._beating, self._ended = threading.RLock(), threading.Event()
        self._verify()
        self._raise_if_lost()
        self._file.write_bytes(self._record())
        self.beat()
        self._raise_if_lost()
        self._thread = threading.Thread(target=self._keep_beating, name=f"lock-{role}", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        path: Path,
        work: str,
        stop: str = "",
        beside: bool = False,
        timing: Timing = TIMING,
        is_gone: Callable[[Mapping[str, Any]], bool] = lambda noted: False,
    ) -> FolderLock:
        """Take the lock of a folder; wait only while its owner may be dead.

        Args:
            path: The folder; it is made where there is none. With `beside` also a file, and nothing is made of it.
            work: What the owner does, for whoever is refused.
            stop: How to stop the owner, likewise; "": by a signal to this process.
            beside: The lock's files are beside the path, and are removed when it is released.
            timing: Seconds.
            is_gone: Tells from what the owner has noted that its job has ended; its lock is stale sooner then.

        Raises:
            ConfigError: Another process works there, or no lock can be made there.
        """
        files = path.with_name(f"{FOLDER}-{path.name}") if beside else path / FOLDER
        try:
            waiting = _Waiting(path, timing, is_gone)
            while True:
                files.mkdir(parents=True, exist_ok=True)
                top = newest(files)
                free = top is None or top.free
                if free or (top is not None and waiting.is_stale(top)):
                    number = take(files, top, owner := owner_of(work, stop), None if free else waiting.beats)
                    if number:
                        lock = cls(Ticket(str(path), str(files), number, owner["token"]), "job", timing)
                        lock._remove = beside
                        return lock
                time.sleep(timing.poll_s)
        except OSError as error:
            raise ConfigError(f"{path} cannot be locked: {error.strerror or error}") from error

    @classmethod
    def join(
        cls, ticket: Ticket, role: str, timing: Timing = TIMING, on_lost: Callable[[], None] | None = None
    ) -> FolderLock:
        """Work for the owner of a lock in another process.

        Args:
            ticket: The owner's.
            role: A name of this process, unique among those of the owner.
            timing: Seconds.
            on_lost: Called once, in a thread, when the lock is lost.

        Raises:
            LostLock: The owner holds it no more.
        """
        return cls(ticket, role, timing, on_lost)

    def check(self) -> None:
        """Return when this process may write.

        Raises:
            LostLock: The lock was lost.
        """
        if not self.lost and _now() >= self._lease_until:
            self.beat()
        self._raise_if_lost()

    def note(self, noted: Mapping[str, Any]) -> None:
        """Leave JSON values for the `is_gone` of others."""
        with contextlib.suppress(OSError):
            (self._files / f"{self.ticket.generation}.note").write_text(json.dumps(noted))

    def beat(self) -> None:
        """Show that this process lives, and look whether the lock is still its owner's."""
        with self._beating:
            began = _now()
            try:
                with self._file.open("r+b") as file:
                    file.write(self._record())
            except OSError:
                # Taken and removed, or the disk fails: the lease is not renewed.
                began = 0.0
            self._verify()
            if began and not self.lost:
                self._lease_until = began + self.timing.lease_s

    def leave(self) -> None:
        """End the beats of this process; the owner's others go on."""
        self._ended.set()
        self._thread.join(OTHERS_END_S)
        # A folder that cannot be written any more: others see that this process is dead.
        with contextlib.suppress(OSError):
            self._file.unlink()

    def release(self) -> None:
        """Give the lock up, as soon as the owner's other processes have ended."""
        self.leave()
        self._verify()
        deadline = time.monotonic() + OTHERS_END_S
        while not self.lost and not (over := all(map(is_dead, read_beats(self._files, self.ticket.generation)))):
            if time.monotonic() > deadline:
                break
            time.sleep(self.timing.poll_s)
        if self.lost or not over:
            return
        with contextlib.suppress(OSError):
            (self._files / f"{self.ticket.generation}.released").touch()
            if self._remove:
                shutil.rmtree(self._files, ignore_errors=True)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _keep_beating(self) -> None:
        while not self._ended.wait(self.timing.beat_s):
            self.beat()
            if self.lost:
                if self.on_lost is not None:
                    self.on_lost()
                return

    def _record(self) -> bytes:
        self._count += 1
        return json.dumps({"count": self._count, **self._me}).encode().ljust(BEAT_BYTES)

    def _verify(self) -> None:
        """Set `lost` where another process has the lock."""
        try:
            top = newest(self._files)
        except FileNotFoundError:
            top = None
        except OSError:
            # Not known; what is written now would fail as well.
            return
        if top is None:
            self.lost = "its lock was removed"
        elif (top.generation, top.owner.get("token")) != (self.ticket.generation, self.ticket.token):
            self.lost = f"its lock was taken by {top.described}"

    def _raise_if_lost(self) -> None:
        if self.lost:
            raise LostLock(f"{self.ticket.path}: {self.lost}; this process writes nothing more and ends")


class _Waiting:
    """Watches a lock that is held; refuses as soon as its owner shows that it lives.

    Attributes:
        beats: The owner's, as they were seen first.
    """

    def __init__(self, path: Path, timing: Timing, is_gone: Callable[[Mapping[str, Any]], bool]):
        self.path, self.timing, self.is_gone = path, timing, is_gone
        self.beats: tuple[bytes, ...] = ()
        self._generation, self._began, self._since, self._said, self._gone = -1, 0.0, 0.0, False, False

    def is_stale(self, held: Held) -> bool:
        """Return whether nothing has been heard of the owner for too long.

        Raises:
            ConfigError: The owner lives.
        """
        now, beats = time.monotonic(), held.beats()
        if held.generation != self._generation:
            self._generation, self.beats, self._began, self._since = held.generation, beats, now, now
            self._gone = is_dead(held.owner) or self.is_gone(held.noted)
        if beats != self.beats:
            # What a job that was killed has started ends a moment later.
            if not (self._gone or is_dead(held.owner)) or now - self._began > self.timing.stale_s:
                raise ConfigError(f"{self.path} is in use by {held.described}; {held.how_to_stop}")
            self.beats, self._since = beats, now
        # Longer than a lease in any case: a process that still works for the owner must ask before it writes.
        limit_s = self.timing.stale_s / 3 if self._gone else self.timing.stale_s
        if not self._said and now - self._since > SAY_AFTER_S:
            self._said = True
            logger.info(
                f"{self.path} is locked by {held.described}, of whom nothing is heard; it is taken over if that stays so "
                f"for {limit_s:.0f} s"
            )
        return now - self._since > limit_s


def _now() -> float:
    """Return seconds of a clock that counts while the machine is suspended, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
