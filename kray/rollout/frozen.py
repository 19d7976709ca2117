"""A version of the policy that plays and does not learn, on engines of its own that start when they are first needed."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from kray.records import RolloutTask
from kray.rollout.outcome import TaskOutcome
from kray.rollout.pool import Pool, Session
from kray.rollout.pool_state import Published


class FrozenPool:
    """Generates single turns; any number of them may wait at once.

    Attributes:
        pool: Its engines, with the weights that were published to them.
        version: How often other weights have taken the place of the first ones; it counts apart from the policy's versions.
    """

    def __init__(self, pool: Pool):
        """Take over a pool; no engine is started."""
        self.pool, self.version = pool, -1
        self._session: Session | None = None
        self._reading: asyncio.Task | None = None
        self._waiting: dict[int, asyncio.Future[TaskOutcome]] = {}

    async def publish(self, weights: Published) -> None:
        """Play with these weights from now on; their version is replaced by the pool's.

        Raises:
            KrayError: Its engine is lost for good, or does not serve them in time.
        """
        self.pool.start()
        self.version += 1
        await self.pool.publish(replace(weights, version=self.version))

    async def generate(self, task: RolloutTask) -> TaskOutcome:
        """Generate a turn.

        Args:
            task: The turn; its id and its policy version are replaced by the pool's.

        Raises:
            KrayError: The pool has no engine left, or none serves in time.
        """
        if self._session is None:
            self._session = self.pool.open()
        # The version that the policy in training has is none of this pool's.
        task = replace(task, id=next(self.pool.task_ids), policy_version=self.version)
        future = self._waiting[task.id] = asyncio.get_running_loop().create_future()
        self._session.submit([task])
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(self._session))
        try:
            return await future
        finally:
            # Also when the wait was given up.
            self._waiting.pop(task.id, None)

    async def close(self) -> None:
        """Drop the turns that are being generated and end the engines."""
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        if self._session is not None:
            self._session.__exit__()
        await self.pool.close()

    async def _read(self, session: Session) -> None:
        """Hand outcomes to those who wait for them, until none is left."""
        try:
            while session.left:
                outcome = await session.next()
                if (future := self._waiting.get(outcome.task.id)) is not None and not future.done():
                    future.set_result(outcome)
        except Exception as error:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(error)
