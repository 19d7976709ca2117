"""A process that waits for the next loss of an engine, with vLLM imported but no model loaded.

Importing vLLM and torch is most of what a small engine on CPU takes to start, and the same for every engine. The process asks
Ray for nothing: it takes the place of an engine whose CPUs are free again. An engine on a GPU gets its GPU from Ray when its
actor is created, so that none can be prepared (`rollout.spare`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kray.rollout.engine_spec import EngineSpec
from kray.rollout.receiving_engine import EngineActor

logger = logging.getLogger(__name__)


class Spare:
    """At most one waiting process; each is used once."""

    def __init__(self, make: Callable[[int], Any]):
        """Create without a process.

        Args:
            make: Starts an actor that waits; is given a number that no earlier one had.
        """
        self._make, self._made = make, 0
        self._actor: Any = None

    @property
    def waiting(self) -> bool:
        """Whether a process waits."""
        return self._actor is not None

    def prepare(self) -> None:
        """Start a process unless one waits."""
        if self._actor is None:
            self._actor = self._make(self._made)
            self._made += 1

    def take(self) -> Any:
        """Return the actor that waits, which is the caller's from now on; None where none does."""
        actor, self._actor = self._actor, None
        return actor

    def close(self) -> None:
        """End the process."""
        if (actor := self.take()) is not None:
            ray.kill(actor)


def spare_of(spec: EngineSpec, label: str) -> Spare:
    """Return a spare for engines of a pool, on the node of the caller.

    Args:
        spec: What every engine is started with.
        label: The pool's part of actors' names.
    """

    def make(number: int) -> Any:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {
            "name": f"kray-{label}-spare-{number}",
            "num_cpus": 0,
            "max_concurrency": 4,
            "scheduling_strategy": here,
            "runtime_env": {"env_vars": spec.environment()},
        }
        return EngineActor.options(**options).remote(spec, waits=True)

    return Spare(make)
