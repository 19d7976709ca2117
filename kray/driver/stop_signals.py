"""The signals by which people and batch systems end a job: SIGINT, SIGTERM, SIGHUP.

timeout, scancel, systemctl and docker signal a whole group of processes and their leader besides, so that a job may get one
signal several times. Signals within SAME_S of one that counted do not count.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

SAME_S = 2.0
# Monotonic seconds of the last signal that counted; of the process, since what catches signals changes while it runs.
_counted_at = float("-inf")


def counts(now: float) -> bool:
    """Return whether a signal at `now`, in monotonic seconds, is another one than the last."""
    global _counted_at
    if now - _counted_at < SAME_S:
        return False
    _counted_at = now
    return True


def ignored_while_ending() -> None:
    """Ignore the first signal that counts from now on; another one ends the process at once, with exit code 130.

    What `caught` puts back is then this, so that a signal that comes while the process ends does not change its exit code.
    """
    received: list[str] = []

    def handle(name: str) -> None:
        received.append(name)
        if len(received) > 1:
            os._exit(130)

    _catch(handle)
    # In its last steps Python puts back what ends a process, unless a signal is ignored.
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in _numbers()])


@contextlib.contextmanager
def caught(handle: Callable[[str], None]) -> Iterator[None]:
    """Call `handle` with the name of each signal that counts, in place of what the signals did; for the main thread."""
    before = _catch(handle)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _catch(handle: Callable[[str], None]) -> dict[int, Any]:
    """Have `handle` called from now on; return what the signals did."""

    def handler(number: int, _: object) -> None:
        if counts(time.monotonic()):
            handle(signal.Signals(number).name)

    return {number: signal.signal(number, handler) for number in _numbers()}


def _numbers() -> list[int]:
    # Under nohup a closed terminal is ignored.
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def interrupt(name: str) -> None:
    """Raise KeyboardInterrupt, whatever the signal."""
    raise KeyboardInterrupt(name)
