"""Buckets in shared memory: one process of a node writes them, the node's engines read them, two buckets at a time.

- A slot is written again only when every reader that is still there has released it.
- A reader that dies is noticed at once, one that hangs at a deadline; it is then dropped, and the others go on.
- A reader notices at once that the writer died or gave up.
- The memory has no name in a file system: it is freed when the last process that maps it ends, however that happens.

A channel is two files in memory (memfd), which readers open by /proc/<pid>/fd/<number>: the slots, which stay for all
transfers, and a control file for each transfer, with counters that one process each writes. Locks on single bytes of the
control file, which the kernel releases when their owner ends, show who is alive. Linux only.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from dataclasses import dataclass

import numpy as np

from kray.errors import KrayError
from kray.weight_sync.buckets import Bucket, Header

# Buckets that may be in shared memory at a time: one is written while the other is read.
SLOTS = 2
# Seconds between two looks at a counter.
POLL_S = 0.0005
# Polls between two checks whether another process is alive.
ALIVE_POLLS = 20
# Bytes at the start of a slot for the header: its length, then JSON. Some 100 bytes for each tensor.
HEADER_BYTES = 4 * 2**20
# Control file: numbers of 8 bytes, each written by one process. The writer's: buckets published, and whether it gave up. Then
# two for each reader: buckets released, written by the reader, and whether it was dropped, written by the writer.
PUBLISHED, GAVE_UP, FIRST_READER = 0, 1, 2


class TransferBroken(KrayError):
    """The rest of a transfer will not come; the receiver itself is fine."""


@dataclass(frozen=True, slots=True)
class Feed:
    """What a reader needs to join a transfer.

    Attributes:
        control: Path of the control file.
        slots: Path of the slots.
        capacity: Most bytes of a bucket.
        reader: Number of this reader, from 0.
        limit_s: Longest wait for a bucket in seconds.
    """

    control: str
    slots: str
    capacity: int
    reader: int
    limit_s: float


def _stride(capacity: int) -> int:
    """Return the bytes of a slot, whole pages."""
    return -(-(HEADER_BYTES + capacity) // mmap.PAGESIZE) * mmap.PAGESIZE


def _lock(kind: int, fd: int, byte: int, command: int) -> int:
    """Run a command on the lock of one byte, held by an open file; return the kind of lock that stands in the way."""
    # struct flock of 64-bit Linux: type, whence, start, length, pid.
    found = fcntl.fcntl(fd, command, struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0))
    return struct.unpack("hhqqi4x", found)[0]


def _released(reader: int) -> int:
    return FIRST_READER + 2 * reader


def _dropped(reader: int) -> int:
    return FIRST_READER + 2 * reader + 1


class _Control:
    """Counters and locks of one transfer."""

    def __init__(self, fd: int):
        self.fd = fd

    def get(self, place: int) -> int:
        return int.from_bytes(os.pread(self.fd, 8, 8 * place), "little", signed=True)

    def set(self, place: int, value: int) -> None:
        os.pwrite(self.fd, value.to_bytes(8, "little", signed=True), 8 * place)

    def hold(self, place: int) -> None:
        """Show, until this file is closed or the process ends, that the owner of a counter is alive."""
        _lock(fcntl.F_WRLCK, self.fd, place, fcntl.F_OFD_SETLK)

    def held(self, place: int) -> bool:
        """Return whether the owner of a counter, another process or file than this, is alive."""
        return _lock(fcntl.F_WRLCK, self.fd, place, fcntl.F_OFD_GETLK) != fcntl.F_UNLCK


class ChannelWriter:
    """The writing end of a node's channel, for any number of transfers one after the other."""

    def __init__(self, capacity: int):
        """Take memory for SLOTS buckets.

        Args:
            capacity: Most bytes of a bucket.
        """
        self.capacity = capacity
        self.slots_fd = os.memfd_create("kray-weights")
        os.ftruncate(self.slots_fd, SLOTS * _stride(capacity))
        self._map = mmap.mmap(self.slots_fd, 0)
        self._control: _Control | None = None
        self.readers: list[int] = []
        self.dropped: list[int] = []

    def open(self, readers: int, limit_s: float) -> list[Feed]:
        """Begin a transfer and return what each reader needs to join it.

        Args:
            readers: How many there are.
            limit_s: Longest wait for a reader; a reader waits four times as long for a bucket.
        """
        self._end()
        control = _Control(os.memfd_create("kray-weights-control"))
        os.ftruncate(control.fd, 8 * _released(readers))
        control.hold(PUBLISHED)
        self._control, self._limit_s = control, limit_s
        self.readers, self.dropped = list(range(readers)), []
        paths = [f"/proc/{os.getpid()}/fd/{fd}" for fd in (control.fd, self.slots_fd)]
        return [Feed(paths[0], paths[1], self.capacity, reader, 4 * limit_s) for reader in self.readers]

    def payload(self, index: int) -> np.ndarray:
        """Return the (capacity,) bytes of bucket `index`, once every reader has released what was there before."""
        self._wait_released(index - SLOTS)
        return self._slot(index)[HEADER_BYTES : HEADER_BYTES + self.capacity]

    def publish(self, header: Header) -> None:
        """Let readers read the bucket that was written to `payload(header.index)`."""
        text = header.encode()
        if len(text) > HEADER_BYTES - 8:
            raise KrayError(
                f"weights: a bucket of {len(header.entries)} tensors has too long a header; take smaller ones"
            )
        assert self._control is not None
        assert self._control.get(PUBLISHED) == header.index
        slot = self._slot(header.index)
        slot[:8] = np.frombuffer(len(text).to_bytes(8, "little"), dtype=np.uint8)
        slot[8 : 8 + len(text)] = np.frombuffer(text, dtype=np.uint8)
        self._control.set(PUBLISHED, header.index + 1)

    def give_up(self) -> None:
        """Tell the readers that nothing more comes."""
        if self._control is not None:
            self._control.set(GAVE_UP, 1)

    def close(self) -> None:
        """Give the memory back."""
        self._end()
        # Views of it may be alive; it is freed with the last of them.
        if self.slots_fd >= 0:
            os.close(self.slots_fd)
            self.slots_fd = -1

    def _end(self) -> None:
        if self._control is not None:
            for reader in self.readers:
                # Its slots are written again: one that still reads must not take what it finds there for its bucket.
                self._control.set(_dropped(reader), 1)
            os.close(self._control.fd)
            self._control = None

    def _slot(self, index: int) -> np.ndarray:
        stride = _stride(self.capacity)
        return np.frombuffer(self._map, dtype=np.uint8, count=stride, offset=index % SLOTS * stride)

    def _wait_released(self, index: int) -> None:
        """Wait until all readers have released bucket `index`, and drop those that died or let the deadline pass."""
        control = self._control
        assert control is not None
        deadline, polls = time.monotonic() + self._limit_s, 0
        for reader in list(self.readers):
            while control.get(_released(reader)) <= index:
                polls += 1
                dead = polls % ALIVE_POLLS == 0 and not control.held(_released(reader))
                if dead or time.monotonic() > deadline:
                    self.readers.remove(reader)
                    self.dropped.append(reader)
                    control.set(_dropped(reader), 1)
                    break
                time.sleep(POLL_S)


class ChannelReader:
    """The reading end of one transfer."""

    def __init__(self, feed: Feed):
        """Join a transfer.

        Raises:
            TransferBroken: Its writer is gone.
        """
        self.feed = feed
        try:
            self._control = _Control(os.open(feed.control, os.O_RDWR | os.O_CLOEXEC))
            self._slots = os.open(feed.slots, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise TransferBroken(f"weights: the transfer cannot be joined: {error}") from error
        self._control.hold(_released(feed.reader))

    def bucket(self, index: int) -> tuple[Bucket, int]:
        """Wait for a bucket.

        Returns:
            The bucket, which is valid until `release(index)`, and how many there are.

        Raises:
            TransferBroken: It does not come.
        """
        control, deadline, polls = self._control, time.monotonic() + self.feed.limit_s, 0
        while control.get(PUBLISHED) <= index:
            polls += 1
            if control.get(GAVE_UP):
                raise TransferBroken(f"weights: the transfer was given up before bucket {index}")
            if polls % ALIVE_POLLS == 0 and not control.held(PUBLISHED) and control.get(PUBLISHED) <= index:
                raise TransferBroken(f"weights: the sender was lost before bucket {index}")
            if time.monotonic() > deadline:
                raise TransferBroken(f"weights: bucket {index} did not come within {self.feed.limit_s:.3g} s")
            time.sleep(POLL_S)
        stride = _stride(self.feed.capacity)
        start = index % SLOTS * stride
        size = int.from_bytes(os.pread(self._slots, 8, start), "little")
        header = Header.decode(os.pread(self._slots, min(size, HEADER_BYTES), start + 8))
        self._check_kept()
        # This process's own file, which stays when the writer ends.
        path, inode = f"/proc/{os.getpid()}/fd/{self._slots}", os.fstat(self._slots).st_ino
        return Bucket(path, inode, SLOTS * stride, start + HEADER_BYTES, list(header.entries)), header.count

    def release(self, index: int) -> None:
        """Let the writer write to the bucket's slot.

        Raises:
            TransferBroken: This reader was dropped as too slow.
        """
        self._check_kept()
        self._control.set(_released(self.feed.reader), index + 1)

    def close(self) -> None:
        """Leave the transfer; safe to call twice."""
        if self._control.fd >= 0:
            os.close(self._control.fd)
            os.close(self._slots)
            self._control.fd = -1

    def _check_kept(self) -> None:
        if self._control.get(_dropped(self.feed.reader)):
            raise TransferBroken(
                f"weights: this engine was dropped: it did not take a bucket within {self.feed.limit_s / 4:.3g} s, or another "
                "transfer began"
            )
