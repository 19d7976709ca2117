"""Main memory and shared memory of a cluster's nodes: what a configuration needs there and what the file gives. Pure.

Ray keeps weights that travel in its object store, in shared memory (/dev/shm). What a pod's file says is read by
kray/config/cluster_file.py; of nodes whose memory no file states only the needs are told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kray.config.cluster_file import Cluster, Group
from kray.config.memory import GIB, host_memory, state_in_main_memory
from kray.config.memory_check import gib
from kray.config.model_sizes import ModelSizes
from kray.config.placement import Fit, place
from kray.config.schema import KrayConfig
from kray.errors import ConfigError

# Ray's own rule where ray start is not told --object-store-memory (resolve_object_store_memory in ray/_private/utils.py): a
# share of the memory, at most so many bytes, and at most a share of /dev/shm.
STORE_SHARE, STORE_MOST, SHM_SHARE = 0.3, 200 * 10**9, 0.95


@dataclass(frozen=True, slots=True)
class NodeNeed:
    """Bytes of main memory that one node of a group needs beside its processes.

    Attributes:
        start: While the model is read; 0 on other nodes than that of rank 0.
        gathered: Rank 0's whole weights at an update; 0 on other nodes.
        store: Of Ray's object store: two versions of the weights on rank 0's node, one where engines are.
        saving: Copies of the shards of this node's ranks while a checkpoint is written.
        state: Of this node's ranks by train.offload, or while engines have their GPUs (rollout.colocate).
        activations: Inputs of layers of this node's ranks while they learn (train.activation_offload).
    """

    start: int
    gathered: int
    store: int
    saving: int
    state: int = 0
    activations: int = 0

    @property
    def least(self) -> int:
        """Bytes that are held for sure, at some moment."""
        return self.state + max(self.start, self.store + max(self.gathered, self.activations))

    @property
    def most(self) -> int:
        """Bytes at the worst moment: an update while a checkpoint is still being written."""
        return self.state + max(self.start, self.store + self.saving + max(self.gathered, self.activations))


def node_needs(config: KrayConfig, sizes: ModelSizes, cluster: Cluster, fit: Fit) -> Mapping[str, NodeNeed]:
    """Return the needs of a node of each group that has ranks or engines, of the fullest one."""
    host, train = host_memory(config, sizes), config.train
    first = next(iter(fit.ranks), "")
    found: dict[str, NodeNeed] = {}
    for group in cluster.groups:
        engines = fit.engines[group.name] + fit.opponents[group.name]
        if not (fit.ranks[group.name] or engines):
            continue
        here = min(fit.ranks[group.name], _ranks_in(group, config))
        saving, inputs = (-(-whole * here // train.ranks) for whole in (host.saving, host.activations))
        own = group.name == first
        found[group.name] = NodeNeed(
            start=host.start if own else 0,
            gathered=host.gathered if own else 0,
            store=host.version * (2 if own else bool(engines)),
            saving=saving,
            state=here * state_in_main_memory(config, sizes),
            activations=inputs,
        )
    return found


def _ranks_in(group: Group, config: KrayConfig) -> int:
    rank = config.train
    fitting = [
        have // need for have, need in ((group.cpus, rank.cpus_per_rank), (group.gpus, rank.gpus_per_rank)) if need
    ]
    return int(min(fitting, default=rank.ranks))


def store_of(group: Group) -> int | None:
    """Return the bytes of the object store that Ray makes on a node; None where the file does not say enough."""
    if group.store is not None:
        return group.store
    known = [] if group.memory is None else [int(STORE_SHARE * group.memory)]
    known += [] if group.shm is None else [int(SHM_SHARE * group.shm)]
    return min(*known, STORE_MOST) if known else None


def node_rows(config: KrayConfig, sizes: ModelSizes, cluster: Cluster) -> list[tuple[str, str]]:
    """Return (label, value) rows of the memory of the cluster's nodes.

    Raises:
        ConfigError: The actors do not fit on the cluster, or a node's memory is less than what is surely needed.
    """
    fit = place(config, cluster)
    rows: list[tuple[str, str]] = []
    for name, need in node_needs(config, sizes, cluster, fit).items():
        group = next(group for group in cluster.groups if group.name == name)
        _require(group, need, cluster.path)
        rows += [(f"host memory on {name}", _memory(group, need)), (f"  object store on {name}", _store(group, need))]
        rows += [("note", text) for text in _notes(group, need)]
    return rows


def _memory(group: Group, need: NodeNeed) -> str:
    parts = [f"{gib(need.state)} of the state of ranks"] if need.state else []
    parts += [f"{gib(need.start)} while the model is read"] if need.start else []
    parts += [f"{gib(need.activations)} of inputs of layers"] if need.activations else []
    parts += [f"{gib(need.gathered)} gathered at an update"] if need.gathered else []
    parts += [f"{gib(need.saving)} while a checkpoint waits"] if need.saving else []
    given = "" if group.memory is None else f" of {gib(group.memory)}"
    return f"{gib(need.most)}{given} at most, beside processes" + (f" ({', '.join(parts)})" if parts else "")


def _store(group: Group, need: NodeNeed) -> str:
    store = store_of(group)
    given = "" if store is None else f" of {gib(store)}"
    shm = "" if group.shm is None else f"; /dev/shm has {gib(group.shm)}"
    return f"{gib(need.store)}{given} for weights{shm}"


def _notes(group: Group, need: NodeNeed) -> Iterator[str]:
    if group.memory is not None and need.most > group.memory:
        yield (
            f"nodes of {group.name} have {gib(group.memory)} of memory, and one needs up to {gib(need.most)} beside its "
            f"processes when an update comes while a checkpoint is written; give it {-(-need.most // GIB)}Gi or more"
        )
    store = store_of(group)
    if store is not None and need.store > store:
        yield (
            f"weights need {gib(need.store)} of the object store on {group.name}, which has {gib(store)}: the rest goes "
            f"through the disk at each update; {_larger(group, need)}"
        )
    elif group.shm is not None and group.store is not None and group.store > SHM_SHARE * group.shm:
        yield f"object-store-memory of {group.name} is larger than its /dev/shm: ray start refuses that or uses the disk"


def _larger(group: Group, need: NodeNeed) -> str:
    shm, memory = need.store / SHM_SHARE, need.store / STORE_SHARE
    if need.store > STORE_MOST or (group.memory is not None and group.memory < memory):
        return f"give ray start --object-store-memory={need.store} and /dev/shm {gib(shm)}"
    return f"give /dev/shm {gib(shm)}"


def _require(group: Group, need: NodeNeed, path: str) -> None:
    """Refuse a node without the memory for what is held for sure: weights while they are read or handed over."""
    if group.memory is not None and group.memory < need.least:
        whose = "the one of rank 0" if need.gathered or need.start else "one"
        parts = [f"{gib(need.start)} while weights are read", f"{gib(need.gathered + need.store)} at an update"]
        parts += [f"{gib(need.state)} of the state of ranks"] if need.state else []
        parts += [f"{gib(need.activations)} of inputs of layers"] if need.activations else []
        raise ConfigError(
            f"{path}: nodes of {group.name} have {gib(group.memory)} of memory, and {whose} needs {gib(need.least)} beside its "
            f"processes ({', '.join(parts)}); give it {-(-need.least // GIB)}Gi or more"
        )
