"""A learner rank that can send its weights to engines by buckets (kray/weight_sync/transfer.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import ray

from kray.train.learner import Learner
from kray.train.model import WeightSource
from kray.weight_sync.buckets import MIB, plan_buckets
from kray.weight_sync.channel import Feed
from kray.weight_sync.flat_weights import Entry, FlatWeights
from kray.weight_sync.transfer import Sender, Sent


@dataclass(frozen=True, slots=True)
class SenderPlace:
    """Where rank 0 sends from.

    Attributes:
        node: Ray's id of its node.
        capacity: Size of the largest bucket in bytes.
    """

    node: str
    capacity: int


class SendingLearner(Learner):
    """A rank of the learner as an actor."""

    _sender: Sender | None = None

    def sender_place(self, bucket_mib: int, limit_s: float) -> SenderPlace:
        """Make the sender, where there is none yet, and return where it is. For rank 0.

        Args:
            bucket_mib: Size of a bucket.
            limit_s: Longest wait for one bucket to reach all receivers, in seconds.
        """
        if self._sender is None:
            self._sender = Sender(limit_s)
        plan = plan_buckets(WeightSource(self.model, self.dtype).sizes(), bucket_mib * MIB)
        return SenderPlace(ray.get_runtime_context().get_node_id(), plan.capacity)

    def listen(self) -> tuple[str, int]:
        """Listen for receivers on other nodes and return address and port. For rank 0."""
        assert self._sender is not None
        return self._sender.listen(ray.util.get_node_ip_address())

    def open_channel(self, readers: int, capacity: int) -> list[Feed]:
        """Begin a transfer and return what the engines of this node need to join it. For rank 0."""
        assert self._sender is not None
        return self._sender.channel.open(readers, capacity)

    def send_weights(self, transfer: str, receivers: Sequence[str], bucket_mib: int) -> Sent | None:
        """Send the weights to the engines that have joined and to the receivers; None on other ranks. A collective.

        Args:
            transfer: Names the transfer.
            receivers: Names of the receivers that were asked to receive it.
            bucket_mib: Size of a bucket.
        """
        source = WeightSource(self.model, self.dtype)
        plan = plan_buckets(source.sizes(), bucket_mib * MIB)
        if self._sender is not None:
            return self._sender.send(transfer, receivers, plan, source.take, source.dtype)
        for _ in source.take(0, plan.bounds[-1]):
            pass
        return None

    def weight_buckets(self, bucket_mib: int) -> Iterator[FlatWeights | str]:
        """Yield the weights bucket by bucket, for the object store, then `FlatWeights.checksum` of all. A collective.

        Other ranks than 0 yield nothing.
        """
        source = WeightSource(self.model, self.dtype)
        plan = plan_buckets(source.sizes(), bucket_mib * MIB)
        manifest: list[Entry] = []
        for start, stop in pairwise(plan.bounds):
            taken = source.take(start, stop)
            state = [(name, source.cast(tensor).to("cpu")) for name, tensor in taken if self.rank == 0]
            if self.rank == 0:
                bucket = FlatWeights.pack(state)
                manifest += bucket.manifest
                # Ray copies it to its store before the next one is taken.
                yield bucket
        if self.rank == 0:
            yield FlatWeights(manifest, []).checksum
