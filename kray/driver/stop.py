"""A request to stop, which can come at any time."""

from __future__ import annotations

import asyncio
from typing import Any


class Stopped(Exception):
    """The run was asked to stop."""


class Stop:
    """A request to stop a run.

    Attributes:
        reason: Why the run is to stop, "" until it is asked to.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._asked = asyncio.Event()

    def ask(self, reason: str) -> None:
        """Ask the run to stop; the first reason stays."""
        self.reason = self.reason or reason
        self._asked.set()

    async def unless(self, work: Any) -> Any:
        """Return the result of a coroutine, or give it up when the run is asked to stop.

        Raises:
            Stopped: The stop came first; the coroutine was cancelled.
        """
        working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise Stopped
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)


async def end(task: asyncio.Task) -> None:
    """Cancel a task and return when it has ended, in whatever way."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
