"""What `--check` says about memory: a table of bytes, and a refusal with the nearest setting that fits. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kray.config.cluster_file import Cluster
from kray.config.devices import dtype_of
from kray.config.engine_advice import given_cache_fits, smaller_steps, without_given_cache
from kray.config.engine_options import CACHE_KEY
from kray.config.memory import (
    BANDWIDTHS,
    GIB,
    EngineMemory,
    context_tokens,
    engine_memory,
    host_memory,
    longest_rollout,
    microbatch_tokens,
    part_tokens,
    rank_memory,
    state_in_main_memory,
    update_seconds,
)
from kray.config.model_sizes import ModelSizes
from kray.config.placement import place, requested
from kray.config.schema import KrayConfig
from kray.errors import ConfigError

# Bytes of a GPU that an engine keeps while it sleeps, and a rank always, beside what is counted: contexts of CUDA, graphs,
# buffers of nccl. Assumed.
ENGINE_ASLEEP, CONTEXT = 2 * GIB, GIB
# GPUs of a node where no cluster is given.
NODE_GPUS = 8
# Most learner ranks that are proposed, and shares of a GPU's memory for engines.
MOST_RANKS = 1024
SHARES = (0.9, 0.95)


@dataclass(frozen=True, slots=True)
class Devices:
    """Memory that is known, in bytes; None where it is not.

    Attributes:
        gpu: Of one GPU.
        machine: Main memory of the machine on which all actors run.
        cluster: On whose nodes they run.
    """

    gpu: int | None = None
    machine: int | None = None
    cluster: Cluster | None = None

    def have_places(self, config: KrayConfig) -> bool:
        """Return whether the cluster, where it is known, has places for all actors."""
        try:
            if self.cluster is not None:
                place(config, self.cluster)
        except ConfigError:
            return False
        return True

    def one_node(self, config: KrayConfig) -> bool:
        """Return whether one node holds all ranks and engines."""
        cpus, gpus = requested(config)
        if self.cluster is None:
            return gpus <= NODE_GPUS
        fit = place(config, self.cluster)
        used = [group for group in self.cluster.groups if fit.ranks[group.name] or fit.engines[group.name]]
        return len(used) == 1 and cpus <= used[0].cpus and gpus <= used[0].gpus


def gib(count: float) -> str:
    """Return a number of bytes as text: 3.55 GiB, 12 MiB."""
    if count < 0.1 * GIB:
        return f"{count / 2**20:.3g} MiB"
    return f"{count / GIB:,.2f} GiB" if count < 10 * GIB else f"{count / GIB:,.1f} GiB"


def memory_rows(config: KrayConfig, sizes: ModelSizes, devices: Devices) -> list[tuple[str, str]]:
    """Return (label, value) rows of the bytes that a configuration needs."""
    trained = "all trained" if sizes.trained == sizes.elements else f"{sizes.trained:,} trained"
    return [
        ("parameters", f"{sizes.elements:,}, {trained}; computed in {dtype_of(config)}"),
        *_rank_rows(config, sizes, devices),
        *_engine_rows(config, engine_memory(config, sizes, devices.gpu), devices),
        *_host_rows(config, sizes, devices.one_node(config)),
    ]


def _rank_rows(config: KrayConfig, sizes: ModelSizes, devices: Devices) -> list[tuple[str, str]]:
    train, rank = config.train, rank_memory(config, sizes)
    how = "recomputed in the backward pass" if train.activation_checkpointing else "all kept for the backward pass"
    if train.activation_offload and train.gpus_per_rank:
        how = "recomputed, inputs of layers in main memory"
    of_all = f" of {microbatch_tokens(config):,} (train.context_parallel)" if train.context_parallel > 1 else ""
    kept = f"{gib(rank.gradients)} gradients"
    if rank.whole_gradients:
        kept += f" + {gib(rank.whole_gradients)} whole ones (train.reduce_each_microbatch false)"
    reference = f" + {gib(rank.reference)} start model" if rank.reference else ""
    context = f", {gib(CONTEXT)} of CUDA and nccl" if train.gpus_per_rank else ""
    total = rank.total + (CONTEXT if train.gpus_per_rank else 0)
    return [
        ("memory of a rank", f"{gib(total)}{_of(devices.gpu if train.gpus_per_rank else None)}"),
        ("  exactly", f"{gib(rank.parameters)} parameters + {kept} + {gib(rank.optimizer)} optimizer{reference}"),
        (
            "  about",
            f"{gib(rank.gathered)} gathered layers, {gib(rank.buffers)} to reduce gradients, {gib(rank.logits)} logits"
            f"{context}",
        ),
        ("  activations", f"about {gib(rank.activations)} at {part_tokens(config):,} tokens{of_all}, {how}"),
        *_main_memory_rows(config, sizes),
    ]


def _main_memory_rows(config: KrayConfig, sizes: ModelSizes) -> Iterator[tuple[str, str]]:
    if config.train.gpus_per_rank and config.rollout.colocate:
        yield "  beside an engine", f"about {gib(ENGINE_ASLEEP)} that it keeps while it sleeps (rollout.colocate)"
    if state := state_in_main_memory(config, sizes):
        moments = ", the moments always" if config.train.offload == "optimizer" else ""
        away = config.rollout.colocate and config.train.offload != "all"
        yield "  in main memory", f"{gib(state)} {f'while the engine generates{moments}' if away else 'always'}"


def _of(known: int | None) -> str:
    return "" if known is None else f" of {gib(known)}"


def _engine_rows(config: KrayConfig, engine: EngineMemory, devices: Devices) -> list[tuple[str, str]]:
    context, rollout = context_tokens(config), config.rollout
    fitting = engine.sequences(context)
    if engine.cache is None:
        cache = f"{engine.token:,} bytes a token; give --gpu-gib to see how many sequences fit"
    else:
        cache = (
            f"{gib(max(0, engine.cache))}, {engine.token:,} bytes a token: {fitting:,} sequences of {context:,} tokens "
            f"(rollout.max_sequences {rollout.max_sequences})"
        )
    rows = [("memory of an engine", f"{gib(engine.weights)} weights")]
    if rollout.gpus_per_engine > 1:
        rows = [(f"each of an engine's {rollout.gpus_per_engine} GPUs", rows[0][1])]
    if rollout.gpus_per_engine:
        share = (
            ""
            if devices.gpu is None or CACHE_KEY in rollout.vllm
            else f" of {gib(rollout.gpu_memory_share * devices.gpu)} (rollout.gpu_memory_share)"
        )
        rows = [(rows[0][0], f"{rows[0][1]} + about {gib(engine.working)} to compute{share}")]
    return [*rows, ("  keys and values", cache)]


def _host_rows(config: KrayConfig, sizes: ModelSizes, one_node: bool) -> list[tuple[str, str]]:
    host, seconds = host_memory(config, sizes), update_seconds(config, sizes, one_node)
    gathered = f"{gib(host.gathered)} gathered + " if host.gathered else ""
    update = f"{gathered}{gib(host.version)} in the object store, twice while one version replaces another"
    if config.rollout.sync_bucket_mib:
        update = f"{gib(host.gathered)} in buckets + {gib(host.late)} in the object store where an engine starts late"
    rates = ", ".join(f"{name} {BANDWIDTHS[name] / 1e9:g}" for name in seconds)
    return [
        (
            "host of rank 0",
            f"{gib(host.start)} while {'it reads the model' if sizes.read_whole else 'ranks read their rows'}",
        ),
        ("  at an update", update),
        *([("  in an update", f"{gib(host.activations)} inputs of layers, of all ranks")] if host.activations else []),
        ("  while a checkpoint waits", f"{gib(host.saving)}, with all ranks on this node"),
        ("a checkpoint", f"{gib(host.checkpoint)} on disk, {config.run.keep_checkpoints} are kept"),
        ("new weights in engines", f"about {_seconds(sum(seconds.values()))} s, if GB/s are: {rates}"),
    ]


def _seconds(count: float) -> str:
    return f"{count:.2g}" if count < 10 else f"{count:,.0f}"


def require_fits(config: KrayConfig, sizes: ModelSizes, devices: Devices) -> None:
    """Refuse a configuration that cannot fit where memory is known.

    Raises:
        ConfigError: Names the parts, what is there, and the nearest setting that fits.
    """
    if devices.gpu is not None and config.train.gpus_per_rank:
        _require_rank(config, sizes, devices)
    if devices.gpu is not None and config.rollout.gpus_per_engine:
        _require_engine(config, sizes, devices.gpu)
    if devices.machine is not None:
        _require_machine(config, sizes, devices.machine)


def _require_rank(config: KrayConfig, sizes: ModelSizes, devices: Devices) -> None:
    rank, colocated = rank_memory(config, sizes), config.rollout.colocate
    known = max(0, (devices.gpu or 0) - CONTEXT - (ENGINE_ASLEEP if colocated else 0))
    beside = f"the {gib(CONTEXT)} of CUDA and nccl"
    if colocated:
        beside += f" and the {gib(ENGINE_ASLEEP)} of an engine that sleeps"
    if rank.total <= known:
        return
    for changes in _rank_changes(config, bool(rank.whole_gradients), sizes.heads, devices.cluster is not None):
        changed = _changed(config, changes)
        found = rank_memory(changed, sizes).total
        if found <= known and devices.have_places(changed):
            advice = f"{_overrides(changes)} needs {gib(found)}"
            break
    else:
        lora, ranks = "" if config.model.lora else "model.lora, ", "" if colocated else ", number of ranks"
        advice = (
            f"no offload{ranks}, micro-batches or recomputation makes it fit: use {lora}a smaller model or GPUs with more "
            "memory"
        )
    parts = (
        f"parameters, gradients and optimizer {gib(rank.state)}, gathered layers and buffers "
        f"{gib(rank.gathered + rank.buffers)}, activations {gib(rank.activations)}, logits {gib(rank.logits)}"
    )
    raise ConfigError(
        f"train.ranks: a rank needs {gib(rank.total)} and its GPU has {gib(known)} beside {beside} ({parts}); {advice}"
    )


def _rank_changes(config: KrayConfig, whole: bool, heads: int, clustered: bool) -> Iterator[dict[str, Any]]:
    """Yield changes of `train` that save memory: on as few ranks as possible, and of those the ones that cost least.

    Args:
        config: The configuration.
        whole: Whether ranks hold whole gradients.
        heads: Attention heads of the model.
        clustered: Whether a cluster is known.
    """
    train, least = config.train, longest_rollout(config)
    early: dict[str, Any] = {"train.reduce_each_microbatch": True} if whole else {}
    single_copy: dict[str, Any] = {"train.replicas": 1} if train.replicas > 1 else {}
    less: dict[str, Any] = {} if train.activation_checkpointing else {"train.activation_checkpointing": True}
    moved: dict[str, Any] = {} if train.activation_offload else {"train.activation_offload": True}
    sizes = [train.microbatch_tokens >> k for k in range(1, 32) if train.microbatch_tokens >> k >= least]
    shorter = [{"train.microbatch_tokens": tokens} for tokens in sizes]
    places = ("none", "optimizer", "all")
    away: list[dict[str, Any]] = [{"train.offload": place} for place in places[places.index(train.offload) + 1 :]]
    many: list[dict[str, Any]] = []
    if not config.rollout.colocate:
        # With colocation as many engines would be needed as ranks.
        many = [{"train.ranks": train.ranks << k} for k in range(1, 11) if train.ranks << k <= MOST_RANKS]
    # AdamW on the CPU is slow, so GPUs that are there come first; a machine has no more than it has.
    more = [*away[:-1], *many, *away[-1:]] if clustered else [*away, *many]
    for ranks in [{}, *more]:
        single = [ranks, *(ranks | each for each in (early, single_copy, less, less | moved, *shorter) if each)]
        saving = [early | single_copy | less, early | single_copy | less | moved]
        yield from (
            each for each in [*single, *(ranks | some | each for some in saving for each in [{}, *shorter])] if each
        )
        # Last what divides even a single rollout.
        parts = math.gcd(heads, ranks.get("train.ranks", train.ranks)) if train.packing and not train.compile else 1
        smallest = ranks | early | single_copy | less | moved | (shorter[-1] if shorter else {})
        for together in (train.context_parallel << k for k in range(1, 8)):
            if not parts % together:
                yield smallest | {"train.context_parallel": together}


def _changed(config: KrayConfig, changes: Mapping[str, Any]) -> KrayConfig:
    """Return the configuration with other values of `train`."""
    values = {key.removeprefix("train."): value for key, value in changes.items()}
    if values.get("offload") == "all":
        # Gradients leave the device when they are reduced, which is the default then.
        values.setdefault("reduce_each_microbatch", None)
    if config.train.ranks == 1 and "ranks" in values:
        # A rank alone has false here, whatever was given.
        values.setdefault("reduce_each_microbatch", None)
    return replace(config, train=replace(config.train, **values))


def _overrides(changes: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={str(value).lower()}" for key, value in changes.items())


def _require_engine(config: KrayConfig, sizes: ModelSizes, known: int) -> None:
    rollout, engine = config.rollout, engine_memory(config, sizes, known)
    most = int(100 * (known - CONTEXT) / known) / 100
    if known > 2 * CONTEXT and rollout.gpu_memory_share > most:
        rest = "CUDA takes of it"
        if rollout.colocate:
            rest = "a rank keeps of it while the engine generates (rollout.colocate)"
        raise ConfigError(
            f"rollout.gpu_memory_share {rollout.gpu_memory_share:g} leaves less of a GPU of {gib(known)} than the "
            f"{gib(CONTEXT)} that {rest}; rollout.gpu_memory_share={most:g} fits"
        )
    if given_cache_fits(config, engine, known - CONTEXT):
        return
    config = without_given_cache(config)
    engine = engine_memory(config, sizes, known)
    if engine.sequences(context_tokens(config)):
        return
    share = gib(rollout.gpu_memory_share * known)
    advice = (
        " or ".join([*_engine_changes(config, sizes, known), *smaller_steps(config, sizes, known)])
        or "no number of GPUs makes it fit: choose a smaller model"
    )
    whose = "its GPU" if rollout.gpus_per_engine == 1 else f"each of its {rollout.gpus_per_engine} GPUs"
    raise ConfigError(
        f"rollout.gpu_memory_share: an engine has {share} of {whose}, and needs {gib(engine.weights)} for weights, about "
        f"{gib(engine.working)} to compute, and {gib(engine.token * context_tokens(config))} for one sequence of "
        f"{context_tokens(config):,} tokens; {advice}"
    )


def _engine_changes(config: KrayConfig, sizes: ModelSizes, known: int) -> Iterator[str]:
    """Yield settings with which an engine holds one sequence: a larger share of its GPUs, else shorter responses, more GPUs."""

    def fits(key: str, value: Any) -> bool:
        changed = replace(config, rollout=replace(config.rollout, **{key: value}))
        return bool(engine_memory(changed, sizes, known).sequences(context_tokens(changed)))

    rollout, engine = config.rollout, engine_memory(config, sizes, known)
    for share in SHARES:
        if share > rollout.gpu_memory_share and fits("gpu_memory_share", share):
            yield f"rollout.gpu_memory_share={share:g} fits one"
            return
    room = max(0, engine.cache or 0) // engine.token - config.prompts.max_tokens
    if room > 0:
        yield f"rollout.max_response_tokens={room} fits one"
    more = (gpus for gpus in sizes.counts.possible() if gpus > rollout.gpus_per_engine)
    if gpus := next((gpus for gpus in more if fits("gpus_per_engine", gpus)), 0):
        # An engine that shares the device of a rank has one GPU.
        apart = "rollout.colocate=false " if rollout.colocate else ""
        yield f"{apart}rollout.gpus_per_engine={gpus} fits one"
    if dtype_of(config) == "float32":
        yield "model.dtype=bfloat16 halves it"


def _require_machine(config: KrayConfig, sizes: ModelSizes, known: int) -> None:
    """Refuse what the main memory of one machine cannot hold, by what is held for sure and at the same time."""
    if _on_machine(config, sizes) <= known:
        return
    rollout = config.rollout
    fewer = [replace(rollout, engines=count, min_engines=None) for count in range(rollout.engines - 1, 0, -1)]
    smaller = [replace(rollout, kv_cache_gib=rollout.kv_cache_gib / 2**k) for k in (1, 2, 3)]
    advice = "choose a smaller model, model.lora, or a larger machine"
    for changed in [*fewer, *smaller]:
        if (found := _on_machine(replace(config, rollout=changed), sizes)) <= known:
            key = "engines" if changed.engines != rollout.engines else "kv_cache_gib"
            advice = f"rollout.{key}={getattr(changed, key):g} needs {gib(found)}"
            break
    raise ConfigError(
        f"train.ranks, rollout.engines: ranks, engines and the object store need {gib(_on_machine(config, sizes))} of main "
        f"memory, and this machine has {gib(known)}; {advice}"
    )


def _on_machine(config: KrayConfig, sizes: ModelSizes) -> int:
    rollout, engine, host = config.rollout, engine_memory(config, sizes, None), host_memory(config, sizes)
    each = state_in_main_memory(config, sizes) if config.train.gpus_per_rank else rank_memory(config, sizes).state
    ranks = config.train.ranks * each
    engines = 0 if rollout.gpus_per_engine else rollout.engines * (engine.weights + (engine.cache or 0))
    return max(host.start, ranks + engines + host.gathered + host.version)
