"""Waiting for an actor's replies, so that a stopped process is noticed soon and a busy one is not mistaken for it.

- A wait counts only seconds in which this process itself was running. After a pause of its own (a stopped driver, a suspended
  machine) no actor is lost for replies that could not be read meanwhile.
- A process that is seen to be stopped ends a wait after STOPPED_S, whatever its deadline. Only one on this machine can be seen.
- A long command is accompanied by short ones (`ping`), which the actor answers in another thread: a process that is stopped
  in the middle of it is lost after the deadline of a ping, not after that of the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

# Seconds between two looks at the clock during a wait, and what one look counts at most: more has passed where this process
# did not run.
SLICE_S = 1.0
MOST_COUNTED_S = 2.0
# Seconds without a reply after which it is asked whether the process is stopped.
STOPPED_S = 5.0


class Awake:
    """Counts the seconds in which this process has run. Pure: `now` (seconds, monotonic) is passed."""

    def __init__(self, now: float):
        """Begin to count."""
        self.seconds = 0.0
        self._last = now

    def count(self, now: float) -> float:
        """Add what has passed since the last call, at most MOST_COUNTED_S; return all seconds so far."""
        self.seconds += min(now - self._last, MOST_COUNTED_S)
        self._last = now
        return self.seconds


async def within(reply: Awaitable[Any], limit_s: float, stopped: Callable[[], bool] = lambda: False) -> Any:
    """Return what is awaited.

    Args:
        reply: Of the actor.
        limit_s: Longest wait, in seconds in which this process runs.
        stopped: Tells whether the actor's process is known to be stopped.

    Raises:
        TimeoutError: It took longer, or the process is stopped.
    """
    future = asyncio.ensure_future(reply)
    awake = Awake(time.monotonic())
    try:
        while not future.done():
            left_s = limit_s - awake.seconds
            if left_s <= 0:
                raise TimeoutError
            await asyncio.wait({future}, timeout=min(SLICE_S, left_s))
            waited_s = awake.count(time.monotonic())
            if waited_s >= STOPPED_S and not future.done() and stopped():
                raise TimeoutError
        return future.result()
    finally:
        future.cancel()


async def while_alive(reply: Awaitable[Any], limit_s: float, ping: Callable[[], Awaitable[Any]], every_s: float) -> Any:
    """Return what is awaited, as long as the actor also answers pings.

    Args:
        reply: Of the command.
        limit_s: As in `within`.
        ping: Waits for a sign of life of the actor, and raises TimeoutError itself.
        every_s: Seconds between an answer and the next ping.

    Raises:
        TimeoutError: The command or a ping took too long.
    """

    async def watch() -> None:
        while True:
            await asyncio.sleep(every_s)
            await ping()

    command, watching = asyncio.ensure_future(within(reply, limit_s)), asyncio.ensure_future(watch())
    try:
        await asyncio.wait({command, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not command.done():
            watching.result()
        return await command
    finally:
        for task in (command, watching):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await watching
