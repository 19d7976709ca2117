"""An engine that also gets weights by buckets, which it loads while they arrive (rollout.sync_bucket_mib).

vLLM gets each bucket as an object that its workers, in this process or in others of the node, read from shared memory. Where
the rest does not come, the engine computes nothing until it has loaded weights from the object store.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray

from kray.rollout.engine import Engine
from kray.rollout.engine_spec import EngineSpec
from kray.rollout.stopwatch import Stopwatch
from kray.weight_sync.buckets import Bucket, joined
from kray.weight_sync.channel import ChannelReader, Feed, TransferBroken
from kray.weight_sync.flat_weights import Entry, FlatWeights
from kray.weight_sync.proof import Proof


class ReceivingEngine(Engine):
    """A rollout engine that takes part in transfers."""

    def __init__(self, spec: EngineSpec, waits: bool = False):
        """See `Engine`."""
        # Of the transfer that was joined last, until `receive` takes it.
        self._reader: ChannelReader | None = None
        # The weights are partly those of another version.
        self._incomplete = False
        self._start: np.ndarray | None = None
        super().__init__(spec, waits)

    def start(self) -> dict[str, Any]:
        """Wait until the model is loaded.

        Returns:
            What `Engine.start` returns, and "node", Ray's id of the node.
        """
        return super().start() | {"node": ray.get_runtime_context().get_node_id()}

    def join(self, feed: Feed) -> None:
        """Join a transfer, which `receive` then loads, in place of the one before.

        Raises:
            TransferBroken: Its sender is gone.
        """
        before, self._reader = self._reader, ChannelReader(feed)
        if before is not None:
            before.close()

    @ray.method(concurrency_group="commands")
    def update(  # type: ignore[override]
        self, version: int, weights: FlatWeights | list[ray.ObjectRef], probe: list[int]
    ) -> Proof:
        """Load new weights and prove them.

        Args:
            version: The policy version of the weights.
            weights: The weights, or references to buckets of them.
            probe: (P,) token ids to score with them.
        """
        if isinstance(weights, list):
            weights = joined(ray.get(weights))
        return self._command(self._update, version, weights, probe)

    @ray.method(concurrency_group="commands")
    def receive(self, version: int, probe: list[int]) -> Proof | str:
        """Load the weights of the transfer that was joined, while they arrive, and prove them.

        Args:
            version: The policy version of the weights.
            probe: (P,) token ids to score with them.

        Returns:
            The proof; or, where `update` has to load them from the object store, the reason.
        """
        return self._command(self._receive, version, probe)

    def _receive(self, version: int, probe: list[int]) -> Proof | str:
        start, clock = self._start_logprobs(probe), Stopwatch()
        reader, self._reader = self._reader, None
        if reader is None:
            return "no transfer was joined"
        try:
            weights = FlatWeights(self._load_buckets(clock.each("wait", _buckets(reader))), [])
        except TransferBroken as error:
            return str(error)
        finally:
            reader.close()
        logprobs = self._serve_version(version, probe, clock)
        if not self._tasks:
            if self._probe_history.changed_without_effect(weights, probe, logprobs):
                # `update` finds out why, with all tensors at hand.
                return "the logprobs of the probe are those of the version before"
            self._probe_history.record(weights, probe, logprobs)
        return Proof(logprobs, weights.checksum, clock.seconds, start)

    def _load_buckets(self, buckets: Iterator[Bucket]) -> list[Entry]:
        """Load buckets and return the manifest of what was loaded.

        Raises:
            TransferBroken: The rest will not come.
        """
        manifest: list[Entry] = []
        self._rpc("start_weight_update", {})
        self._incomplete = True
        try:
            for bucket in buckets:
                self._rpc("update_weights", {"update_info": {"tensors": bucket}})
                manifest += bucket.manifest
        except TransferBroken:
            # vLLM begins no update while one is open; the layers that got no weights are put back.
            self._rpc("update_weights", {"update_info": {"tensors": [], "abandoned": True}})
            self._rpc("finish_weight_update", {})
            raise
        self._rpc("finish_weight_update", {})
        self._incomplete = False
        return manifest

    def _load(self, weights: FlatWeights, clock: Stopwatch) -> None:
        super()._load(weights, clock)
        self._incomplete = False

    def _start_logprobs(self, probe: list[int]) -> np.ndarray | None:
        # Of the model's folder; some of its weights may be gone.
        if not self._incomplete:
            self._start = super()._start_logprobs(probe)
        return self._start

    def _may_step(self) -> bool:
        return super()._may_step() and not self._incomplete


def _buckets(reader: ChannelReader) -> Iterator[Bucket]:
    """Yield each bucket when it has arrived, and release it when the next one is asked for."""
    index, count = 0, 1
    while index < count:
        bucket, count = reader.bucket(index)
        yield bucket
        reader.release(index)
        index += 1


# The actor class; commands have a thread of their own, so that they run in order and block no report.
EngineActor: Any = ray.remote(concurrency_groups={"commands": 1})(ReceivingEngine)  # type: ignore[call-overload]
