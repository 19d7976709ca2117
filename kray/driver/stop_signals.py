"""The signals by which people and batch systems end a job: SIGINT, SIGTERM, SIGHUP.

timeout, scancel, systemctl and docker signal a whole group of processes and their leader besides, so that a job may get one
signal several times. Signals within SAME_S of one that counted do not count.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

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


@contextlib.contextmanager
def caught(handle: Callable[[str], None]) -> Iterator[None]:
    """Call `handle` with the name of each signal that counts, in place of what the signals did; for the main thread.

    What they did is put back at the end, unless that is a KeyboardInterrupt: while the process ends, the same signal may come
    again, and would end it without its exit code.
    """

    def handler(number: int, _: object) -> None:
        if counts(time.monotonic()):
            handle(signal.Signals(number).name)

    # Under nohup a closed terminal is ignored.
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        for number, previous in before.items() if not interrupted else ():
            signal.signal(number, previous)


def interrupt(name: str) -> None:
    """Raise KeyboardInterrupt, whatever the signal."""
    raise KeyboardInterrupt(name)
