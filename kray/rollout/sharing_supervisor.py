"""Supervises an engine that shares its device with a learner rank: it starts, sleeps and wakes when it is its turn."""

from __future__ import annotations

from typing import Any

from kray.rollout.engine_supervisor import HEARTBEAT_S, RESPONSE_TIMEOUT_S, EngineSupervisor
from kray.rollout.pool_state import PooledEngine, PoolState, Published, event_set
from kray.rollout.sharing import Sharing
from kray.rollout.sleeping_engine import SleepingEngineActor


class SharingSupervisor(EngineSupervisor):
    """Follows the turns of `Sharing` and records what its engine holds."""

    actor_class = SleepingEngineActor

    def __init__(self, pool: PoolState, engine: PooledEngine, sharing: Sharing):
        """Create a supervisor; `run` starts it."""
        super().__init__(pool, engine)
        self.sharing, self.turns = sharing, sharing.turns

    def _placement(self) -> dict[str, Any]:
        return super()._placement() | self.sharing.options(self.engine.name)

    async def _until_startable(self) -> None:
        while not self.turns.may_start:
            self.engine.changed.clear()
            await event_set(self.engine.changed, HEARTBEAT_S)
        self.turns.engine_starts(self.engine.name)

    def _resting_due(self) -> bool:
        return not self.turns.may_start and not self.pool.schedule.load(self.engine.name)

    async def _rest(self) -> None:
        """Put the engine to sleep and wake it at its turn.

        Raises:
            EngineLost: It did not sleep or wake in time, or was lost while it slept.
        """
        engine, limit_s = self.engine, self.pool.rollout.sync_timeout_s
        await self._call("sleep", limit_s)
        engine.health.mark_asleep()
        self.turns.engine_asleep(engine.name)
        self.pool.engine_changed.set()
        while not self.turns.may_start:
            engine.changed.clear()
            if not await event_set(engine.changed, HEARTBEAT_S):
                await self._call("collect", RESPONSE_TIMEOUT_S, 0.0)
        self.turns.engine_wakes(engine.name)
        await self._call("wake_weights", limit_s)
        engine.health.mark_awake()

    def _begin_serving(self, published: Published) -> None:
        # The learner may have been lost while the engine proved its weights.
        if self.turns.may_start:
            self.turns.engine_serves(self.engine.name)
            super()._begin_serving(published)

    def _handle_engine_loss(self, reason: str, preempted: bool = False) -> float | None:
        delay_s = super()._handle_engine_loss(reason, preempted)
        self.turns.engine_lost(self.engine.name)
        self.pool.engine_changed.set()
        return delay_s
