"""How an engine of a pool gets published weights: from the transfer that it has joined, or from the object store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from kray.errors import KrayError
from kray.rollout.pool_state import PooledEngine, Published
from kray.weight_sync.proof import Proof

logger = logging.getLogger(__name__)


class WeightsUnavailable(Exception):
    """The published weights or their learner are lost; the engine is fine and waits for the next version."""


async def load(
    engine: PooledEngine, published: Published, call: Callable[..., Awaitable[Any]], limit_s: float
) -> Proof:
    """Load weights into an engine and return its proof.

    Args:
        engine: The engine.
        published: The weights.
        call: Calls a method of its actor: (method, deadline in seconds, *arguments).
        limit_s: Deadline of each call in seconds.

    Raises:
        WeightsUnavailable: The learner cannot give the weights any more.
    """
    probe, weights = list(published.probe), published.weights
    if engine.actor is not None and published.joined.get(engine.name) is engine.actor:
        found = await call("receive", limit_s, published.version, probe)
        if isinstance(found, Proof):
            return found
        logger.warning(f"pool: {engine.name} loads version {published.version} from the object store: {found}")
    if callable(weights):
        weights = await learned(asyncio.ensure_future(weights()))
    return await call("update", limit_s, published.version, weights, probe)


async def learned(value: Any) -> Any:
    """Return what the learner computes: a value, or the result of a future, which goes on when this is cancelled.

    Raises:
        WeightsUnavailable: The learner failed to compute it.
    """
    if not isinstance(value, asyncio.Future):
        return value
    try:
        return await asyncio.shield(value)
    except KrayError as error:
        raise WeightsUnavailable(str(error)) from error
