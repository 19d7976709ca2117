"""The actor that receives weights for all engines of a node; it asks Ray for no resources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kray.weight_sync.channel import Feed
from kray.weight_sync.transfer import Receiver


class NodeReceiver:
    """A receiver; see `Receiver`."""

    def __init__(self, name: str, root: tuple[str, int], limit_s: float):
        """Find the sender; see `Receiver`."""
        self._receiver = Receiver(name, root, ray.util.get_node_ip_address(), limit_s)

    def open(self, readers: int, capacity: int) -> list[Feed]:
        """Begin a transfer and return what each engine of this node needs to join it."""
        return self._receiver.channel.open(readers, capacity)

    def receive(self, transfer: str) -> tuple[int, ...]:
        """Receive a transfer, hand it on, and return the numbers of the engines that died or were too slow."""
        return self._receiver.receive(transfer)


def start_receiver(node: str, name: str, root: tuple[str, int], limit_s: float, env: Mapping[str, str]) -> Any:
    """Start the receiver of a node and return its actor at once.

    Args:
        node: Ray's id of the node.
        name: Of the receiver.
        root: Address and port of the sender.
        limit_s: Longest wait for one bucket, in seconds.
        env: Environment variables, in place of kray's own.
    """
    variables = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = ray.remote(NodeReceiver).options(
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        runtime_env={"env_vars": variables | dict(env)},
    )
    return options.remote(name, root, limit_s)
