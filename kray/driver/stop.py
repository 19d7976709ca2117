"""A run that can be asked to end at any time."""

from __future__ import annotations

import asyncio
from typing import Any


class Stopped(Exception):
    """The run was asked to stop."""


class Stop:
    """Asked once; `unless` gives up what is waited for. reason: "" until then."""

    def __init__(self) -> None:
        self.reason = ""
        self._asked = asyncio.Event()

    def ask(self, reason: str) -> None:
        """Returns at once; the first reason stays."""
        self.reason = self.reason or reason
        self._asked.set()

    async def unless(self, work: Any) -> Any:
        """The result of the coroutine; when the stop comes first, it is cancelled and Stopped raised."""
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
    """Cancels the task and returns when it has ended, in whatever way."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
