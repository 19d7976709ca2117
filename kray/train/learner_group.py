"""All ranks of the learner as Ray actors, called together. Lives in the driver actor; its methods are coroutines.

Promises
- Every wait has a deadline, and an error says what was waited for and which rank failed.
- All ranks get every call in the same order, which is what their collectives need: one caller at a time (`saved` apart).
- A rank that died, a deadline that passed, a collective that broke: InfrastructureError. The gang is broken then: `kill` it
  (its place stays reserved) or `close` it, `start` a new one and `load` a checkpoint. No rank is restarted alone.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from kray.config.schema import LoraConfig
from kray.config.train_schema import TrainConfig
from kray.errors import ConfigError, InfrastructureError, KrayError
from kray.records import RolloutGroup
from kray.train.learner import Learner, step_rows
from kray.train.metrics import count_nonfinite_steps
from kray.weight_sync.flat_weights import Gathered

PLACEMENT_TIMEOUT_S = 120.0
# After one rank has failed, how long to wait for the others' outcomes: a rank that dies breaks its peers' collectives,
# and their complaint often comes before the news of the death, which is what the error should name.
BLAME_S = 5.0
WATCH_S = 2.0  # between two looks whether all ranks live
SAVED_POLL_S = 0.2
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}


def _free_address() -> tuple[str, int]:
    """This node's ip and a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def _counts(resources: dict[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in sorted(resources.items())) + "}"


class LearnerGroup:
    """group = LearnerGroup(...); await group.start(); await group.update(groups); ...; group.close()"""

    def __init__(
        self,
        train: TrainConfig,
        dtype: str,
        model_path: str,
        total_steps: int,
        seed: int,
        temperature: float = 1.0,
        placement_timeout_s: float = PLACEMENT_TIMEOUT_S,
        lora: LoraConfig | None = None,
        label: str = "",
    ):
        """Starts nothing. Arguments as in `Learner`. label: part of the actors' names, one group's alone."""
        self.train = train
        self.arguments = (model_path, train, dtype, total_steps, seed)
        self.options = (temperature, lora)
        self.placement_timeout_s = placement_timeout_s
        self.label = label or f"{os.getpid()}-{id(self):x}"
        self.lost_in_a_row = 0  # steps whose gradient was not finite
        self.actors: list[Any] = []
        self.placement: PlacementGroup | None = None
        self._lives = 0  # gangs so far

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of one rank."""
        wanted = {"CPU": float(self.train.cpus_per_rank), "GPU": float(self.train.gpus_per_rank)}
        return {name: amount for name, amount in wanted.items() if amount > 0}

    async def start(self) -> list[dict[str, Any]]:
        """Places the ranks, joins them, loads the model; returns what each says of itself. Cleans up when it fails."""
        try:
            if self.placement is None:
                await self.place()
            address, port = await self._rendezvous()
            self._lives += 1
            gang = f"{self._lives}-{secrets.token_hex(2)}"  # one that is dying keeps its ranks' names for a while
            self.actors = [self._make_actor(rank, address, port, gang) for rank in range(self.train.ranks)]
            loading = [actor.describe.remote() for actor in self.actors]
            limit_s = max(self.placement_timeout_s, self.train.timeout_s)
            return await self._wait(loading, "to load the model and join the process group", limit_s)
        except BaseException:
            self.close()
            raise

    async def configure(self, train: TrainConfig, total_steps: int) -> None:
        """Begins another run on the same ranks; `load` then says from which weights. Arguments as in `Learner`."""
        await self._all("configure", "to begin another run", train, total_steps)
        self.train, self.lost_in_a_row = train, 0

    async def update(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """One GRPO step on all ranks; returns its metrics. Rollouts without a reward raise ValueError.

        Raises KrayError when the gradients of train.max_nonfinite steps in a row were not finite.
        """
        rows = await asyncio.to_thread(step_rows, groups, self.train)
        metrics = (await self._all("update", "to update", ray.put(rows)))[0]
        self.lost_in_a_row = count_nonfinite_steps(self.lost_in_a_row, metrics, self.train.max_nonfinite)
        return metrics

    async def gather_weights(self) -> tuple[Gathered, ray.ObjectRef]:
        """What rank 0 says of its weights, and a reference to them (FlatWeights); returns when they are there.

        They do not pass through this process. Actors that get the reference as an argument read them from shared memory
        without copying.
        """
        pairs = [actor.weights.options(num_returns=2).remote() for actor in self.actors]
        said = await self._wait([gathered for gathered, _ in pairs], "to gather the weights")
        return said[0], pairs[0][1]

    async def weights(self) -> ray.ObjectRef:
        """The reference of `gather_weights`."""
        return (await self.gather_weights())[1]

    async def logprobs(
        self, token_rows: Sequence[tuple[Sequence[int], Sequence[int]]], temperature: float = 1.0
    ) -> list[np.ndarray]:
        """The learner's log-probability of each response token: (T,) float32 for each (prompt, response)."""
        return (await self._all("logprobs", "to compute log-probabilities", list(token_rows), temperature))[0]

    async def save(self, folder: str | Path, wait: bool = True) -> None:
        """Writes the sharded checkpoint; `folder` must be on a file system that all ranks share.

        wait false: returns as soon as every rank has taken a copy, and writes while training goes on; the checkpoint may
        be committed when `saved` has returned. One at a time: a later `save` or `load` waits for the write under way.
        """
        await self._all("save", f"to save {folder}", str(folder), not wait)

    async def saved(self) -> None:
        """Returns when no checkpoint is being written on any rank. Raises KrayError when the write failed.

        May be awaited while other calls are made: it is the one method that is no collective.
        """
        deadline = time.monotonic() + self.train.timeout_s
        while not all(await self._all("saved", "whether the checkpoint is written")):
            if time.monotonic() > deadline:
                raise InfrastructureError(f"learner: a checkpoint was not written after {self.train.timeout_s:.0f} s")
            await asyncio.sleep(SAVED_POLL_S)

    async def watch(self) -> None:
        """Raises InfrastructureError soon after a rank has died; never returns. No collective either."""
        while True:
            await asyncio.sleep(WATCH_S)
            pings = [actor.__ray_ready__.remote() for actor in self.actors]
            await self._wait(
                pings, "whether it lives", 2 * self.train.timeout_s
            )  # it may be at a call that takes its time

    async def load(self, folder: str | Path) -> None:
        """Goes on from a checkpoint of any number of ranks."""
        await self._all("load", f"to load {folder}", str(folder))

    async def export(self, folder: str | Path) -> None:
        """Writes a Hugging Face folder."""
        await self._all("export", f"to export {folder}", str(folder))

    def kill(self) -> None:
        """Ends all ranks; their place stays reserved for the next ones."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []

    def close(self) -> None:
        """Ends all ranks and gives their resources back; safe to call twice."""
        self.kill()
        if self.placement is not None:
            remove_placement_group(self.placement)
            self.placement = None

    async def place(self) -> None:
        """Reserves the ranks' resources, or waits for those that went with a node; `start` does it where nobody has before.

        Raises KrayError at the deadline.
        """
        if self.placement is None:
            name = f"kray-{self.label}-learner"
            self.placement = placement_group([self.bundle] * self.train.ranks, strategy="PACK", name=name)
        try:
            await asyncio.wait_for(_value(self.placement.ready()), self.placement_timeout_s)
        except TimeoutError as error:
            has, free = ray.cluster_resources(), ray.available_resources()
            seen = {name: has.get(name, 0.0) for name in self.bundle}
            left = {name: free.get(name, 0.0) for name in self.bundle}
            kind = InfrastructureError if self._lives else KrayError  # they had a place before, or never
            raise kind(
                f"learner: {self.train.ranks} ranks not placed after {self.placement_timeout_s:.0f} s; waiting for "
                f"{_counts(self.bundle)} x {self.train.ranks}; the cluster has {_counts(seen)}, free {_counts(left)}; "
                "lower train.ranks, train.cpus_per_rank or train.gpus_per_rank, or add nodes"
            ) from error

    def _strategy(self, rank: int) -> PlacementGroupSchedulingStrategy:
        assert self.placement is not None
        return PlacementGroupSchedulingStrategy(self.placement, placement_group_bundle_index=rank)

    async def _rendezvous(self) -> tuple[str, int]:
        if self.train.ranks == 1:
            return "", 0
        task = ray.remote(_free_address).options(num_cpus=0, scheduling_strategy=self._strategy(0))
        return (await self._wait([task.remote()], "to name an address to meet at"))[0]

    def _make_actor(self, rank: int, address: str, port: int, gang: str) -> Any:
        threads = str(max(1, self.train.cpus_per_rank))
        environment = {"OMP_NUM_THREADS": threads}
        if not self.train.gpus_per_rank:
            # A process without GPUs sees all of them otherwise; and glibc gives activations back to the system after every
            # step, to have each of their pages cleared again in the next.
            environment |= {"CUDA_VISIBLE_DEVICES": ""} | KEEP_MEMORY
        options = ray.remote(Learner).options(
            name=f"kray-{self.label}-learner-{rank}-{gang}",
            num_cpus=self.train.cpus_per_rank,
            num_gpus=self.train.gpus_per_rank,
            scheduling_strategy=self._strategy(rank),
            runtime_env={"env_vars": environment},
        )
        device = "cuda" if self.train.gpus_per_rank else "cpu"
        return options.remote(rank, self.train.ranks, address, port, *self.arguments, device, *self.options)

    async def _all(self, method: str, purpose: str, *arguments: Any) -> list[Any]:
        """The method's results of all ranks, rank 0 first."""
        if not self.actors:
            raise InfrastructureError(f"learner: asked {purpose}, but it is not running")
        return await self._wait([getattr(actor, method).remote(*arguments) for actor in self.actors], purpose)

    async def _wait(self, refs: list[ray.ObjectRef], purpose: str, limit_s: float | None = None) -> list[Any]:
        timeout_s = limit_s or self.train.timeout_s
        tasks = [asyncio.ensure_future(_value(ref)) for ref in refs]
        try:
            done, pending = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
            if pending and any(task.exception() for task in done):
                await asyncio.wait(pending, timeout=BLAME_S)
            failures = {rank: task.exception() for rank, task in enumerate(tasks) if task.done()}
            errors = {rank: error for rank, error in failures.items() if error}
            if errors:
                raise _blame(errors, purpose)
            if pending:
                key = "" if limit_s else " (train.timeout_s)"
                ranks = ", ".join(str(rank) for rank, task in enumerate(tasks) if not task.done())
                raise InfrastructureError(f"learner: waited {timeout_s:.0f} s for rank {ranks} {purpose}{key}")
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()


async def _value(ref: ray.ObjectRef) -> Any:
    return await ref


def _blame(errors: dict[int, BaseException], purpose: str) -> KrayError:
    """The error that explains best why the ranks could not do it: a death before a complaint.

    An InfrastructureError where another gang may do better: a rank died, an object or a node is gone, a collective broke,
    memory ran out (the last two are RuntimeErrors). What kray itself raised in a rank keeps its kind.
    """
    for rank, error in errors.items():
        if isinstance(error, RayActorError):
            last = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
            named, _, message = last.partition("Error: ")
            if (
                f"{named}Error" == f"{ConfigError.__module__}.{ConfigError.__name__}"
            ):  # raised while the actor was made; Ray keeps only its text
                return _caused(ConfigError(message), error)
            return _caused(InfrastructureError(f"learner rank {rank} died when asked {purpose}: {last}"), error)
    rank, error = next(iter(errors.items()))
    cause = error.cause if isinstance(error, RayTaskError) and error.cause else error
    if isinstance(cause, KrayError):
        kind: type[KrayError] = type(cause)
    else:
        kind = InfrastructureError if isinstance(cause, RuntimeError | RayError) else KrayError
    return _caused(kind(f"learner rank {rank} failed {purpose}: {cause}"), error)


def _caused(failure: KrayError, error: BaseException) -> KrayError:
    failure.__cause__ = error
    return failure
