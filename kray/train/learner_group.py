"""All ranks of the learner as Ray actors, called together. Runs in the driver actor; its methods are coroutines.

Guarantees
- Every wait has a deadline, and an error names what was waited for and which rank failed.
- All ranks get every call in the same order, as their collectives require: one caller at a time, `saved` and `watch` apart.
- A rank that died, a deadline that passed or a collective that failed raises InfrastructureError. The ranks are unusable
  then: `kill` them (their resources stay reserved) or `close` the group, `start` new ones and `load` a checkpoint. A single
  rank is never restarted.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from kray.config.schema import LoraConfig
from kray.config.threads import KERNEL_CACHES, threads_of
from kray.config.train_schema import TrainConfig
from kray.errors import ConfigError, InfrastructureError, KrayError
from kray.records import RolloutGroup
from kray.train.adapter_weights import adapter_weights
from kray.train.colocated_learner import ColocatedLearner
from kray.train.metrics import count_nonfinite_steps
from kray.train.probe_sample import sample_tokens
from kray.train.rank_places import free_address, rank_strategy
from kray.train.sending_learner import SendingLearner
from kray.train.training_rows import step_rows
from kray.weight_sync.flat_weights import Gathered

# Seconds to wait for the ranks' resources.
PLACEMENT_TIMEOUT_S = 120.0
# Seconds to wait for the other ranks' results after one has failed: a rank that dies breaks its peers' collectives, and
# their errors often arrive before that of the dead rank, which is the one to report.
FAILURE_GRACE_S = 5.0
# Seconds between two checks that all ranks are alive: the delay after which a death is noticed between calls.
WATCH_INTERVAL_S = 2.0
# Seconds between two checks whether a checkpoint is on disk; a write takes about this long at least.
SAVED_POLL_S = 0.2
# Methods of a rank that compute with its state, which must be on the device; so does `weights`.
USES_DEVICE = ("configure", "update", "logprobs", "load", "export")
# Share of a GPU that a rank asks for, and its engine, where they share one: Ray gives actors of one bundle the same GPU only if
# their requests fit into it together. The share limits nothing else.
GPU_SHARE = 0.5
# glibc settings, bytes: freed activations are kept for the next micro-batch instead of being returned and cleared again. On CPU
# blocks of 64 MiB and more are returned: clearing them takes little of the time in which they are used, and between smaller
# blocks their places stay unused. On GPUs the weights that are gathered for engines are kept, too.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
CPU_MEMORY = KEEP_MEMORY | {"MALLOC_MMAP_THRESHOLD_": str(2**26)} | KERNEL_CACHES


def _counts(resources: dict[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in sorted(resources.items())) + "}"


class LearnerGroup:
    """The learner's ranks, which must be started before use and closed afterwards."""

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
        env: Mapping[str, str] | None = None,
    ):
        """Keep the settings; `start` starts the ranks.

        Args:
            train: The run's `train` section.
            dtype: See `Learner`.
            model_path: See `Learner`.
            total_steps: See `Learner`.
            seed: See `Learner`.
            temperature: See `Learner`.
            placement_timeout_s: Seconds to wait for the ranks' resources.
            lora: See `Learner`.
            label: Part of the actors' names, unique to this group.
            env: Environment variables of the ranks, in place of kray's own.
        """
        self.train, self.env = train, dict(env or {})
        self.arguments = (model_path, train, dtype, total_steps, seed)
        self.options = (temperature, lora)
        self.placement_timeout_s = placement_timeout_s
        self.label = label or f"{os.getpid()}-{id(self):x}"
        # Steps in a row without a finite gradient.
        self.nonfinite_steps = 0
        self.actors: list[Any] = []
        self.placement: PlacementGroup | None = None
        # Where each rank shares its bundle with an engine: CPUs of the engine, and what is awaited before the device is used.
        self.engine_cpus = 0
        self.before_use: Callable[[], Awaitable[None]] | None = None
        # Number of times that ranks were started.
        self._starts = 0

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of one rank, and of the engine beside it."""
        cpus = self.train.cpus_per_rank + self.engine_cpus
        wanted = {"CPU": float(cpus), "GPU": float(self.train.gpus_per_rank)}
        return {name: amount for name, amount in wanted.items() if amount > 0}

    def share(self, engine_cpus: int, before_use: Callable[[], Awaitable[None]]) -> None:
        """Make place for an engine in each rank's bundle, before `place`.

        Args:
            engine_cpus: CPUs of the engine.
            before_use: Awaited before ranks use their device; it calls `move` where needed.
        """
        self.engine_cpus, self.before_use = engine_cpus, before_use

    async def move(self, method: str) -> list[Any]:
        """Have ranks that share their device `enter_device` or `leave_device`; return what each of them returned."""
        return await self.call(method, f"to {method.replace('_', ' the ')}")

    async def start(self) -> list[dict[str, Any]]:
        """Place the ranks, let them join and load the model; closes the group when that fails.

        Returns:
            `Learner.describe` of each rank.

        Raises:
            KrayError: The ranks could not be placed, or the model cannot be trained.
            InfrastructureError: A rank died or the deadline passed.
        """
        try:
            if self.placement is None:
                await self.place()
            address, port = await self._rendezvous()
            self._starts += 1
            # Actors that were killed keep their names for a while.
            suffix = f"{self._starts}-{secrets.token_hex(2)}"
            self.actors = [self._make_actor(rank, address, port, suffix) for rank in range(self.train.ranks)]
            loading = [actor.describe.remote() for actor in self.actors]
            limit_s = max(self.placement_timeout_s, self.train.timeout_s)
            return await self.wait(loading, "to load the model and join the process group", limit_s)
        except BaseException:
            self.close()
            raise

    async def configure(self, train: TrainConfig, total_steps: int) -> None:
        """Begin another run on the same ranks; `load` then sets the start weights.

        Args:
            train: The new run's `train` section.
            total_steps: Steps of the new run.

        Raises:
            ConfigError: A key differs that the ranks were built with.
        """
        await self.call("configure", "to begin another run", train, total_steps)
        self.train, self.nonfinite_steps = train, 0

    async def update(self, groups: Sequence[RolloutGroup], seed: int = 0) -> dict[str, float]:
        """Learn from one step on all ranks.

        Args:
            groups: The step's groups, every rollout with a reward.
            seed: Of the step, for what the update draws.

        Returns:
            The train/* metrics.

        Raises:
            ValueError: A rollout has no reward.
            KrayError: The gradients of train.max_nonfinite steps in a row were not finite.
        """
        rows = await asyncio.to_thread(step_rows, groups, self.train, seed)
        metrics = (await self.call("update", "to update", ray.put(rows)))[0]
        self.nonfinite_steps = count_nonfinite_steps(self.nonfinite_steps, metrics, self.train.max_nonfinite)
        return metrics

    async def gather_weights(self, adapters: bool = False) -> tuple[Gathered, ray.ObjectRef]:
        """Gather the weights on rank 0; returns when they are in the object store.

        They do not pass through this process. Actors that get the reference as an argument read them from shared memory
        without copying.

        Args:
            adapters: Gather LoRA's adapters alone, else the whole model with the adapters merged.

        Returns:
            Size, checksum and timings, and a reference to the weights (FlatWeights).
        """
        if self.before_use is not None:
            await self.before_use()
        if adapters:
            pairs = [actor.__ray_call__.options(num_returns=2).remote(adapter_weights) for actor in self.actors]
        else:
            pairs = [actor.weights.options(num_returns=2).remote() for actor in self.actors]
        gathered = await self.wait([gathered for gathered, _ in pairs], "to gather the weights")
        return gathered[0], pairs[0][1]

    async def weights(self) -> ray.ObjectRef:
        """Return the reference of `gather_weights`."""
        return (await self.gather_weights())[1]

    async def logprobs(
        self, token_rows: Sequence[tuple[Sequence[int], Sequence[int]]], temperature: float = 1.0
    ) -> list[np.ndarray]:
        """Return the learner's log-probability of each response token.

        Args:
            token_rows: (prompt tokens, response tokens) pairs.
            temperature: Divides the logits.

        Returns:
            For each pair (T,) float32, nats.
        """
        return (await self.call("logprobs", "to compute log-probabilities", list(token_rows), temperature))[0]

    async def sample(self, prompt: Sequence[int], count: int, seed: int) -> tuple[int, ...]:
        """Continue a prompt by so many tokens of the policy; see `sample_tokens`."""
        return (await self.call("__ray_call__", "to sample a probe", sample_tokens, tuple(prompt), count, seed))[0]

    async def save(self, folder: str | Path, wait: bool = True) -> None:
        """Write a sharded checkpoint; an earlier write is waited for.

        Args:
            folder: Where to write, on a file system that all ranks share.
            wait: Whether to return when the checkpoint is on disk; else as soon as every rank has taken a copy, and
                `saved` then waits for the write.
        """
        await self.call("save", f"to save {folder}", str(folder), not wait)

    async def saved(self) -> None:
        """Wait until no rank is writing a checkpoint; may be awaited while other calls are made.

        Raises:
            KrayError: The write failed or took longer than train.timeout_s.
        """
        deadline = time.monotonic() + self.train.timeout_s
        while not all(await self.call("saved", "to report whether the checkpoint is written")):
            if time.monotonic() > deadline:
                raise InfrastructureError(f"learner: a checkpoint was not written after {self.train.timeout_s:.0f} s")
            await asyncio.sleep(SAVED_POLL_S)

    async def watch(self) -> None:
        """Raise InfrastructureError soon after a rank has died; never returns. May run beside other calls."""
        # A ping waits behind the rank's current call.
        limit_s = 2 * self.train.timeout_s
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            await self.wait([actor.__ray_ready__.remote() for actor in self.actors], "to respond", limit_s)

    async def load(self, folder: str | Path) -> None:
        """Load a checkpoint of any number of ranks."""
        await self.call("load", f"to load {folder}", str(folder))

    async def export(self, folder: str | Path) -> None:
        """Write a Hugging Face folder."""
        await self.call("export", f"to export {folder}", str(folder))

    def kill(self) -> None:
        """Kill all ranks; their resources stay reserved for the next ones."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []

    def close(self) -> None:
        """Kill all ranks and release their resources; safe to call twice."""
        self.kill()
        if self.placement is not None:
            remove_placement_group(self.placement)
            self.placement = None

    async def place(self) -> None:
        """Reserve the ranks' resources, or wait for those lost with a node; `start` calls it where needed.

        Raises:
            KrayError: They are not there at the deadline; InfrastructureError if ranks were started before.
        """
        if self.placement is None:
            name = f"kray-{self.label}-learner"
            self.placement = placement_group([self.bundle] * self.train.ranks, strategy="PACK", name=name)
        try:
            await asyncio.wait_for(_value(self.placement.ready()), self.placement_timeout_s)
        except TimeoutError as error:
            total, available = ray.cluster_resources(), ray.available_resources()
            has = {name: total.get(name, 0.0) for name in self.bundle}
            free = {name: available.get(name, 0.0) for name in self.bundle}
            kind = InfrastructureError if self._starts else KrayError
            raise kind(
                f"learner: {self.train.ranks} ranks not placed after {self.placement_timeout_s:.0f} s; waiting for "
                f"{_counts(self.bundle)} x {self.train.ranks}; the cluster has {_counts(has)}, free {_counts(free)}; "
                "lower train.ranks, train.cpus_per_rank or train.gpus_per_rank, or add nodes"
            ) from error

    def _strategy(self, rank: int) -> PlacementGroupSchedulingStrategy:
        assert self.placement is not None
        return rank_strategy(self.placement, rank, self.train)

    async def _rendezvous(self) -> tuple[str, int]:
        if self.train.ranks == 1:
            return "", 0
        task = ray.remote(free_address).options(num_cpus=0, scheduling_strategy=self._strategy(0))
        return (await self.wait([task.remote()], "to find a free address"))[0]

    def _make_actor(self, rank: int, address: str, port: int, suffix: str) -> Any:
        threads = str(threads_of(self.train.threads_per_rank, self.train.cpus_per_rank))
        environment = {"OMP_NUM_THREADS": threads} | (KEEP_MEMORY if self.train.gpus_per_rank else CPU_MEMORY)
        if not self.train.gpus_per_rank:
            # Without this setting a process without GPUs sees all of them.
            environment["CUDA_VISIBLE_DEVICES"] = ""
        alone = self.before_use is None
        options = ray.remote(SendingLearner if alone else ColocatedLearner).options(
            name=f"kray-{self.label}-learner-{rank}-{suffix}",
            num_cpus=self.train.cpus_per_rank,
            num_gpus=self.train.gpus_per_rank * (1 if alone else GPU_SHARE),
            scheduling_strategy=self._strategy(rank),
            runtime_env={"env_vars": environment | self.env},
        )
        device = "cuda" if self.train.gpus_per_rank else "cpu"
        return options.remote(rank, self.train.ranks, address, port, *self.arguments, device, *self.options)

    async def call(self, method: str, purpose: str, *arguments: Any) -> list[Any]:
        """Call a method on all ranks and return their results, rank 0's first."""
        if not self.actors:
            raise InfrastructureError(f"learner: cannot {purpose.removeprefix('to ')}: it is not running")
        if self.before_use is not None and method in USES_DEVICE:
            await self.before_use()
        return await self.wait([getattr(actor, method).remote(*arguments) for actor in self.actors], purpose)

    async def wait(self, refs: list[Any], purpose: str, limit_s: float | None = None) -> list[Any]:
        """Wait for calls of ranks, at most `limit_s` or train.timeout_s, and return their results."""
        timeout_s = limit_s or self.train.timeout_s
        tasks = [asyncio.ensure_future(_value(ref)) for ref in refs]
        try:
            done, pending = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
            if pending and any(task.exception() for task in done):
                await asyncio.wait(pending, timeout=FAILURE_GRACE_S)
            failures = {rank: task.exception() for rank, task in enumerate(tasks) if task.done()}
            errors = {rank: error for rank, error in failures.items() if error}
            if errors:
                raise _root_error(errors, purpose)
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


def _root_error(errors: dict[int, BaseException], purpose: str) -> KrayError:
    """Return the error that best explains why the ranks failed: a death before an exception.

    An InfrastructureError where new ranks may succeed: a rank died, an object or a node is gone, a collective failed,
    memory ran out (the last two are RuntimeErrors). An error that kray itself raised in a rank keeps its class.
    """
    for rank, error in errors.items():
        if isinstance(error, RayActorError):
            last = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
            name, _, message = last.partition("Error: ")
            # Raised while the actor was made: Ray keeps only the text.
            if f"{name}Error" == f"{ConfigError.__module__}.{ConfigError.__name__}":
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
