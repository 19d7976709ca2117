"""Keeps a driver whose folder's lock was taken from writing: its work is given up, and what would still write is refused."""

from __future__ import annotations

import asyncio
from typing import Any

from kray.cluster.folder_lock import FolderLock, Ticket


class Fence:
    """A driver's part in the lock of its folder; one without a lock refuses nothing."""

    def __init__(self, lock: FolderLock | None = None, lost: asyncio.Event | None = None):
        """Take a joined lock and the event that is set when it is lost; see `of`."""
        self._lock, self._lost = lock, lost

    @classmethod
    def of(cls, ticket: Ticket | None, role: str) -> Fence:
        """Work for the owner of a lock, in the event loop that the driver works in.

        Args:
            ticket: Of the lock; None: the folder is not locked.
            role: A name of this process among those of the owner.

        Raises:
            LostLock: The lock is held no more.
        """
        if ticket is None:
            return cls()
        lost, loop = asyncio.Event(), asyncio.get_running_loop()

        def tell() -> None:
            loop.call_soon_threadsafe(lost.set)

        return cls(FolderLock.join(ticket, role, on_lost=tell), lost)

    def check(self) -> None:
        """Return when the driver may write.

        Raises:
            LostLock: The lock was lost.
        """
        if self._lock is not None:
            self._lock.check()

    async def unless_lost(self, work: Any) -> Any:
        """Return the result of a coroutine, or give it up when the lock is lost.

        Raises:
            LostLock: The lock was lost; the coroutine was cancelled.
        """
        if self._lost is None:
            return await work
        working, losing = asyncio.ensure_future(work), asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait({working, losing}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self.check()
            return await working
        finally:
            for task in (working, losing):
                task.cancel()
            await asyncio.gather(working, losing, return_exceptions=True)

    def close(self) -> None:
        """End this process's part."""
        if self._lock is not None:
            self._lock.leave()
