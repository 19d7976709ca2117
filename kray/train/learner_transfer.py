"""The learner's side of sending weights by buckets: calls to all ranks of a LearnerGroup. Runs in the driver actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from kray.errors import InfrastructureError
from kray.train.learner_group import LearnerGroup
from kray.train.sending_learner import SenderPlace
from kray.weight_sync.channel import Feed
from kray.weight_sync.transfer import Sent


class LearnerTransfer:
    """Sends the weights of a group's ranks."""

    def __init__(self, group: LearnerGroup, bucket_mib: int):
        """Keep the settings.

        Args:
            group: The ranks; they may be started again.
            bucket_mib: Size of a bucket.
        """
        self.group, self.bucket_mib = group, bucket_mib

    async def place(self, limit_s: float) -> SenderPlace:
        """Return where rank 0 sends from.

        Args:
            limit_s: Longest wait for one bucket to reach all receivers, in seconds.
        """
        return await self._rank_0("sender_place", "to prepare a transfer", self.bucket_mib, limit_s)

    async def listen(self) -> tuple[str, int]:
        """Let rank 0 listen for receivers on other nodes and return its address and port."""
        return await self._rank_0("listen", "to listen for receivers")

    async def open_channel(self, readers: int, capacity: int) -> list[Feed]:
        """Begin a transfer and return what each engine of rank 0's node needs to join it."""
        return await self._rank_0("open_channel", "to begin a transfer", readers, capacity)

    async def send(self, transfer: str, receivers: Sequence[str]) -> Sent:
        """Send the weights; returns when the receivers have them, and rank 0's node may still be reading.

        Raises:
            InfrastructureError: A rank died or the deadline passed.
        """
        return (await self.group.call("send_weights", "to send weights", transfer, list(receivers), self.bucket_mib))[0]

    async def stored(self) -> tuple[str, list[ray.ObjectRef]]:
        """Put the weights into the object store bucket by bucket; may be awaited while other calls are made.

        Returns:
            `FlatWeights.checksum` of them as they are by the time that the ranks get to it, and references to the buckets
            (FlatWeights).

        Raises:
            InfrastructureError: The learner is not running, or a rank failed.
        """
        if not self.group.actors:
            raise InfrastructureError("learner: cannot store the weights: it is not running")
        ranks = [
            actor.weight_buckets.options(num_returns="streaming").remote(self.bucket_mib) for actor in self.group.actors
        ]
        # They may wait for an update.
        limit_s = 2 * self.group.train.timeout_s
        found = (await self.group.wait([_yielded(rank) for rank in ranks], "to store the weights", limit_s))[0]
        return await found[-1], found[:-1]

    async def _rank_0(self, method: str, purpose: str, *arguments: Any) -> Any:
        if not self.group.actors:
            raise InfrastructureError(f"learner: cannot {purpose.removeprefix('to ')}: it is not running")
        call = getattr(self.group.actors[0], method).remote(*arguments)
        return (await self.group.wait([call], purpose))[0]


async def _yielded(generator: Any) -> list[ray.ObjectRef]:
    found = [reference async for reference in generator]
    # Raises what the rank raised.
    await generator.completed()
    return found
