"""Loads buckets of weights into a vLLM engine while they arrive.

vLLM gets each bucket as an object that its workers, in this process or in others of the node, read from shared memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kray.weight_sync.channel import ChannelReader, Feed, SharedBucket, TransferBroken
from kray.weight_sync.flat_weights import Entry


class JoinedTransfer:
    """The transfer that an engine has joined last."""

    def __init__(self) -> None:
        self._reader: ChannelReader | None = None

    def join(self, feed: Feed) -> None:
        """Join a transfer in place of the one before, which must have ended."""
        before, self._reader = self._reader, ChannelReader(feed)
        if before is not None:
            before.close()

    def buckets(self) -> Iterator[SharedBucket]:
        """Yield each bucket when it has arrived, and release it when the next one is asked for.

        Raises:
            TransferBroken: The rest will not come, or no transfer was joined.
        """
        reader, self._reader = self._reader, None
        if reader is None:
            raise TransferBroken("weights: no transfer was joined")
        try:
            index, count = 0, 1
            while index < count:
                found = reader.bucket(index)
                count = found.header.count
                yield found
                reader.release(index)
                index += 1
        finally:
            reader.close()


def load_buckets(rpc: Callable[[str, dict[str, Any]], None], buckets: Iterable[SharedBucket]) -> list[Entry]:
    """Load buckets and return the manifest of what was loaded.

    Args:
        rpc: Calls a method of every worker of the engine.
        buckets: The buckets.

    Raises:
        TransferBroken: The rest will not come. The engine holds no usable weights until it has loaded others.
    """
    manifest: list[Entry] = []
    rpc("start_weight_update", {})
    try:
        for bucket in buckets:
            rpc("update_weights", {"update_info": {"tensors": bucket}})
            manifest += bucket.header.entries
    except TransferBroken:
        # The layers that got no weights are put back; vLLM begins no update while one is open.
        rpc("update_weights", {"update_info": {"tensors": [], "abandoned": True}})
        rpc("finish_weight_update", {})
        raise
    rpc("finish_weight_update", {})
    return manifest
