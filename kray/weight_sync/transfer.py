"""Buckets on their way: from rank 0 of the learner, through one receiver a node, to the engines of each node.

Rank 0 writes each bucket to the shared memory of its own node, where that node's engines read it, and broadcasts it from there
to the receivers, which do the same on theirs. Filling, sending and loading overlap, two buckets at a time.

- `Sender.send` always takes all tensors, whoever fails: on the learner's other ranks taking them is a collective.
- Rank 0 holds SLOTS buckets besides its shard and the tensor that is being gathered, however large the model is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kray.weight_sync.buckets import BucketPlan, Header, fill, nbytes_of
from kray.weight_sync.channel import SLOTS, ChannelWriter, Feed
from kray.weight_sync.flat_weights import Entry, FlatWeights
from kray.weight_sync.group import Member, Root


@dataclass(frozen=True, slots=True)
class Sent:
    """What the sender reports about a transfer.

    Attributes:
        nbytes: Size of the weights in bytes.
        checksum: `FlatWeights.checksum` of the same weights.
        dropped: Numbers of the readers of this node that died or were too slow.
        lost: Names of the receivers that died or were too slow.
    """

    nbytes: int
    checksum: str
    dropped: tuple[int, ...]
    lost: tuple[str, ...]


class NodeChannel:
    """The channel of one node, made when its first transfer begins."""

    def __init__(self, limit_s: float):
        """Take no memory yet.

        Args:
            limit_s: Longest wait for one bucket to reach all receivers, in seconds; a reader may take half of it.
        """
        self.limit_s = limit_s
        self.writer: ChannelWriter | None = None

    def open(self, readers: int, capacity: int) -> list[Feed]:
        """Begin a transfer; see `ChannelWriter.open`."""
        if self.writer is None or self.writer.capacity < capacity:
            if self.writer is not None:
                self.writer.close()
            self.writer = ChannelWriter(capacity)
        return self.writer.open(readers, self.limit_s / 2)


class Sender:
    """The end at rank 0 of the learner, for any number of transfers one after the other."""

    def __init__(self, limit_s: float):
        """Open nothing.

        Args:
            limit_s: Longest wait for one bucket to reach all receivers, in seconds.
        """
        self.limit_s = limit_s
        self.root: Root | None = None
        self.channel = NodeChannel(limit_s)

    def listen(self, address: str) -> tuple[str, int]:
        """Listen for receivers, where that has not begun, and return address and port.

        Args:
            address: Of this node, which the receivers reach.
        """
        if self.root is None:
            self.root = Root(address, self.limit_s)
        return self.root.address, self.root.port

    def send(
        self,
        transfer: str,
        receivers: Sequence[str],
        plan: BucketPlan,
        take: Callable[[int, int], Iterable[tuple[str, Tensor]]],
        dtype: torch.dtype | None = None,
    ) -> Sent:
        """Send the weights to the readers of this node's channel, which must be open, and to the receivers.

        Args:
            transfer: Names the transfer.
            receivers: Names of the receivers that were asked to receive it; none before `listen`.
            plan: How the weights are divided.
            take: Yields (name, tensor) from one position to another.
            dtype: What floating-point tensors are cast to while they are copied; None: nothing.
        """
        writer, root = self.channel.writer, self.root
        assert writer is not None
        entries: list[Entry] = []
        sending: list[Future] = []
        with contextlib.ExitStack() as failed:
            failed.callback(self._give_up)
            with ThreadPoolExecutor(1, "weights") as thread:
                if root is not None:
                    sending.append(thread.submit(root.form, transfer, receivers))
                for index in range(plan.count):
                    if sending and index >= SLOTS:
                        # Raised after the last tensor was taken, if it failed.
                        sending[index - SLOTS + 1].exception()
                    payload = writer.payload(index)
                    tensors = take(plan.bounds[index], plan.bounds[index + 1])
                    header = Header(index, plan.count, fill(payload, tensors, dtype))
                    writer.publish(header)
                    entries += header.entries
                    if root is not None:
                        sending.append(thread.submit(_broadcast, root, transfer, header, payload[: header.nbytes]))
                for future in sending:
                    future.result()
                if root is not None:
                    root.broadcast(f"{transfer}/end", None)
            failed.pop_all()
        nbytes = sum(map(nbytes_of, entries))
        checksum = FlatWeights(entries, []).checksum
        return Sent(nbytes, checksum, tuple(writer.dropped), tuple(root.lost if root else ()))

    def _give_up(self) -> None:
        """Tell readers and receivers that nothing more comes."""
        if self.root is not None:
            self.root.close()
        if self.channel.writer is not None:
            self.channel.writer.give_up()


def _broadcast(root: Root, transfer: str, header: Header, payload: np.ndarray) -> None:
    key = f"{transfer}/header/{header.index}"
    root.store.set(key, header.encode().decode())
    root.broadcast(f"{transfer}/{header.index}", payload)
    root.store.delete_key(key)


class Receiver:
    """The end at one node, for any number of transfers one after the other."""

    def __init__(self, name: str, root: tuple[str, int], address: str, limit_s: float):
        """Find the sender; see `Member`."""
        self.member = Member(name, root, address, limit_s)
        self.channel = NodeChannel(limit_s)

    def receive(self, transfer: str) -> tuple[int, ...]:
        """Receive a transfer and hand it on to the readers of this node's channel, which must be open.

        Returns:
            Numbers of the readers that died or were too slow.

        Raises:
            TransferBroken: The rest will not come; the readers were told.
        """
        writer = self.channel.writer
        assert writer is not None
        try:
            self.member.join(transfer)
            index, count = 0, 1
            while index < count:
                count = self._receive_bucket(writer, transfer, index).count
                index += 1
            self.member.receive(f"{transfer}/end", None)
        except BaseException:
            writer.give_up()
            # The sender notices, and need not wait for this node.
            self.member.leave()
            raise
        return tuple(writer.dropped)

    def _receive_bucket(self, writer: ChannelWriter, transfer: str, index: int) -> Header:
        headers: list[Header] = []

        def payload() -> np.ndarray:
            headers.append(Header.decode(self.member.store.get(f"{transfer}/header/{index}")))
            return writer.payload(index)[: headers[-1].nbytes]

        self.member.receive(f"{transfer}/{index}", payload)
        writer.publish(headers[-1])
        return headers[-1]
