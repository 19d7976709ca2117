"""Where learner ranks are placed, and where they meet."""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from kray.config.train_schema import TrainConfig
from kray.ports import free_port


def free_address() -> tuple[str, int]:
    """Return this node's address and a port that is free now."""
    return ray.util.get_node_ip_address(), free_port("")


def node_order(node_of: Mapping[int, str]) -> list[int]:
    """Return bundles in the order of the ranks: node by node, so that the ranks of one copy are on as few nodes as can be.

    Args:
        node_of: The node of each bundle.
    """
    bundles = sorted(node_of)
    first = {node_of[bundle]: bundle for bundle in reversed(bundles)}
    return sorted(bundles, key=lambda bundle: (first[node_of[bundle]], bundle))


def rank_strategy(placement: PlacementGroup, rank: int, train: TrainConfig) -> PlacementGroupSchedulingStrategy:
    """Return how Ray is asked for a rank's place.

    Args:
        placement: Has a bundle for each rank.
        rank: The rank.
        train: Ranks are numbered node by node where neighbours belong together: with several replicas, or context parallelism.
    """
    bundle = rank
    if train.replicas > 1 or train.context_parallel > 1:
        bundle = node_order(placement_group_table(placement)["bundles_to_node_id"])[rank]
    return PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=bundle)
