"""Looks at the start model on every node that may hold an engine or a learner rank, once a node, before any of them starts.

A hub id's files are fetched into the node's cache, so that its engines and ranks find them there instead of each asking the
hub; a folder must be there. What is wrong is one error that names the nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kray.errors import ConfigError, InfrastructureError


def fitting_nodes(nodes: Sequence[Mapping[str, Any]], requests: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Return the address of each node that has room for one of the requests, by its id.

    Args:
        nodes: As ray.nodes() lists them.
        requests: Resources of an engine and of a learner rank.
    """
    alive = [node for node in nodes if node["Alive"]]
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in alive
        if any(all(node["Resources"].get(name, 0) >= amount for name, amount in each.items()) for each in requests)
    }


def look(path: str) -> str:
    """Fetch a model where it is not on this node, and look at its configuration and its files of weights.

    Args:
        path: Folder or hub id.

    Returns:
        What is wrong, "" for nothing.
    """
    from kray.prompts.model_files import check_weights, read_config
    from kray.train.weight_files import stored_tensors

    try:
        if Path(path).is_absolute() and not Path(path).is_dir():
            return f"{path} is not there"
        read_config(path)
        check_weights(path)
        stored_tensors(path)
    except ConfigError as error:
        return str(error).removeprefix("model.path: ")
    except Exception as error:
        # Of the hub or of safetensors; dozens of kinds.
        return f"{path}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""


async def look_everywhere(
    path: str, requests: Sequence[Mapping[str, float]], timeout_s: float, env: Mapping[str, str]
) -> None:
    """Look at the model on all nodes of a cluster that fit; a machine alone has been looked at when the run began.

    Args:
        path: Folder or hub id.
        requests: Resources of an engine and of a learner rank.
        timeout_s: Limit for all nodes together.
        env: Environment variables of engines and ranks.

    Raises:
        ConfigError: The model is missing or damaged on a node.
        InfrastructureError: A node did not answer in time.
    """
    import ray

    nodes = fitting_nodes(await asyncio.to_thread(ray.nodes), requests)
    if len(nodes) > 1:
        await look_on(path, nodes, timeout_s, env)


async def look_on(path: str, nodes: Mapping[str, str], timeout_s: float, env: Mapping[str, str]) -> None:
    """Look at the model on some nodes, given as id -> address; see `look_everywhere`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tasks = {
        asyncio.ensure_future(
            _value(
                ray.remote(look)
                .options(
                    num_cpus=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                    runtime_env={"env_vars": dict(env) | {"CUDA_VISIBLE_DEVICES": ""}},
                )
                .remote(path)
            )
        ): address
        for node, address in nodes.items()
    }
    try:
        done, pending = await asyncio.wait(tasks, timeout=timeout_s)
        if pending:
            late = ", ".join(sorted(tasks[task] for task in pending))
            raise InfrastructureError(f"model.path: {path} was not there after {timeout_s:.0f} s on node {late}")
        # A node that is lost meanwhile gets no engine.
        wrong = {tasks[task]: task.result() for task in done if not task.exception() and task.result()}
        if wrong:
            address, first = min(wrong.items())
            others = f" (and {len(wrong) - 1} more nodes)" if len(wrong) > 1 else ""
            raise ConfigError(f"model.path: node {address}{others}: {first}")
    finally:
        for task in tasks:
            task.cancel()


async def _value(reference: Any) -> Any:
    return await reference
