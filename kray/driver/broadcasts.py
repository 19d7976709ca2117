"""Sends the learner's weights to the engines by buckets. Held by the driver actor.

For each version: one receiver on every node with engines, apart from the learner's; a channel of shared memory on every node;
the engines that are up join it; then the learner sends and the receivers hand on, while the engines load.

- An engine or a receiver that dies or hangs costs itself only. Engines that missed a version load it from the object store,
  where it is put when the first of them asks: those that start later, and those of a node whose receiver was lost.
- The process group is made anew when nodes come or go, and when the learner was started again.
- Between nodes it is gloo, in main memory, whatever the ranks compute on.
- Every wait has a deadline: rollout.sync_timeout_s and train.timeout_s, and shares of the smaller.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import ray
from ray.exceptions import RayError

from kray.errors import KrayError
from kray.rollout.health import State
from kray.rollout.node_receiver import start_receiver
from kray.rollout.pool import Pool
from kray.rollout.pool_state import PooledEngine
from kray.rollout.replies import value_of
from kray.train.learner_group import LearnerGroup
from kray.train.learner_transfer import LearnerTransfer
from kray.weight_sync.channel import Feed

logger = logging.getLogger(__name__)

# Share of the shorter deadline in which one bucket must reach all receivers; an engine may take half of it.
BUCKET_SHARE = 0.125
# Seconds to start a receiver, and for an engine or a receiver to join a transfer.
START_S, JOIN_S = 90.0, 20.0


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Weights on their way to the engines; the fields are those of `Published`."""

    weights: Any
    checksum: str | asyncio.Future
    joined: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Reader:
    """An engine as it is when a transfer begins; it may be lost at any time."""

    name: str
    actor: Any
    node: str


@dataclass(slots=True)
class _NodeReceiver:
    actor: Any
    name: str
    root: tuple[str, int]
    started: bool = False


class Broadcasts:
    """The transfers of a run, one after the other."""

    def __init__(
        self,
        learners: LearnerGroup,
        pool: Pool,
        bucket_mib: int,
        node_of: Callable[[PooledEngine], str] = lambda engine: engine.node,
    ):
        """Start nothing.

        Args:
            learners: Whose weights are sent.
            pool: To whose engines.
            bucket_mib: Size of a bucket.
            node_of: Returns the node of an engine; engines of one node share a receiver.
        """
        self.transfer = LearnerTransfer(learners, bucket_mib)
        self.pool, self.node_of, self.env = pool, node_of, learners.env
        self.limit_s = BUCKET_SHARE * min(pool.state.rollout.sync_timeout_s, learners.train.timeout_s)
        self.receivers: dict[str, _NodeReceiver] = {}
        self._numbers = count()
        self._background: set[asyncio.Task] = set()
        self._told = False

    async def begin(self) -> HandedOver:
        """Begin to send the learner's weights to all engines that are up.

        Returns:
            What is published; its checksum is a future until all is sent.

        Raises:
            InfrastructureError: The learner cannot send.
        """
        place = await self.transfer.place(self.limit_s)
        engines: dict[str, list[_Reader]] = {}
        for engine in self.pool.engines:
            if engine.health.state in (State.STALE, State.SERVING) and engine.actor is not None:
                engines.setdefault(self.node_of(engine), []).append(_Reader(engine.name, engine.actor, engine.node))
        others = {node: found for node, found in engines.items() if node != place.node}
        if others or self.receivers:
            self._keep_receivers(others, await self.transfer.listen())
        local = engines.get(place.node, [])
        joined = await self._join(local, await self.transfer.open_channel(len(local), place.capacity))
        for found in await asyncio.gather(
            *(self._open(node, of_node, place.capacity) for node, of_node in others.items())
        ):
            joined |= found
        if joined and not self._told:
            nodes = f" and {len(others)} receivers on other nodes" if others else ""
            logger.info(
                f"new weights go in buckets of {self.transfer.bucket_mib} MiB to {len(joined)} of the engines{nodes}"
            )
            self._told = True
        sending = self._begin(self._send(f"{next(self._numbers)}-{secrets.token_hex(2)}"))
        stored: list[asyncio.Future] = []

        async def weights() -> list[ray.ObjectRef]:
            # Engines that ask share one copy.
            if not stored:
                stored.append(self._begin(self._stored(sending)))
            return await asyncio.shield(stored[0])

        return HandedOver(weights, sending, joined)

    def _begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task:
        """Begin work that ends by itself, or with `close`; whoever awaits it gets its error."""

        def ended(task: asyncio.Task) -> None:
            self._background.discard(task)
            if not task.cancelled() and task.exception() is not None:
                logger.debug(f"weights: {task.exception()}")

        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(ended)
        return task

    async def close(self) -> None:
        """End what was begun, and the receivers."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for node in list(self.receivers):
            self._drop(node)

    def _keep_receivers(self, engines: Mapping[str, list[_Reader]], root: tuple[str, int]) -> None:
        """Start the receivers that are missing and end those that nobody needs."""
        for node, receiver in list(self.receivers.items()):
            if node not in engines or receiver.root != root:
                self._drop(node)
        for node, of_node in engines.items():
            if node not in self.receivers:
                name = f"{node[:8]}-{secrets.token_hex(4)}"
                actor = start_receiver(of_node[0].node, name, root, self.limit_s, self.env)
                self.receivers[node] = _NodeReceiver(actor, name, root)

    async def _open(self, node: str, engines: list[_Reader], capacity: int) -> dict[str, Any]:
        """Open the channel of a node and let its engines join; without its receiver they load from the object store."""
        receiver = self.receivers[node]
        limit_s = JOIN_S if receiver.started else START_S
        try:
            feeds = await asyncio.wait_for(value_of(receiver.actor.open.remote(len(engines), capacity)), limit_s)
        except (RayError, TimeoutError) as error:
            self._lose(node, receiver, error)
            return {}
        receiver.started = True
        return await self._join(engines, feeds)

    async def _join(self, engines: list[_Reader], feeds: list[Feed]) -> dict[str, Any]:
        """Return (name, actor) of those engines that have joined."""
        calls = [engine.actor.join.remote(feed) for engine, feed in zip(engines, feeds, strict=True)]
        results = await asyncio.gather(
            *(asyncio.wait_for(value_of(call), JOIN_S) for call in calls), return_exceptions=True
        )
        # The supervisor of an engine that failed notices it by itself.
        pairs = zip(engines, results, strict=True)
        return {engine.name: engine.actor for engine, result in pairs if not isinstance(result, BaseException)}

    async def _send(self, transfer: str) -> str:
        """Send the weights and return their checksum."""
        receivers = dict(self.receivers)
        calls = [asyncio.ensure_future(value_of(each.actor.receive.remote(transfer))) for each in receivers.values()]
        receiving, lost = dict(zip(receivers, calls, strict=True)), set(receivers)
        try:
            sent = await self.transfer.send(transfer, [each.name for each in receivers.values()])
            lost = {node for node, receiver in receivers.items() if receiver.name in sent.lost}
            if sent.dropped:
                logger.warning(f"weights: {len(sent.dropped)} engines of the learner's node died or were too slow")
            return sent.checksum
        finally:
            self._begin(self._end_receiving(receivers, receiving, lost))

    async def _end_receiving(
        self, receivers: dict[str, _NodeReceiver], receiving: Mapping[str, asyncio.Future], lost: set[str]
    ) -> None:
        """Wait until the receivers are free again, and end those that failed."""
        for node, call in receiving.items():
            try:
                await asyncio.wait_for(call, 0.0 if node in lost else self.limit_s)
            except (RayError, TimeoutError) as error:
                self._lose(node, receivers[node], error)

    async def _stored(self, sending: asyncio.Future) -> list[ray.ObjectRef]:
        expected = await asyncio.shield(sending)
        checksum, buckets = await self.transfer.stored()
        if checksum != expected:
            raise KrayError("the learner has newer weights")
        return buckets

    def _lose(self, node: str, receiver: _NodeReceiver, error: BaseException) -> None:
        if self.receivers.get(node) is receiver:
            why = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            logger.warning(f"weights: the receiver of node {node[:8]} was lost ({why[0]}); it is started again")
            self._drop(node)

    def _drop(self, node: str) -> None:
        ray.kill(self.receivers.pop(node).actor)
