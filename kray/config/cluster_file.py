"""Node groups of a cluster file: a `ray up` file, a KubeRay RayCluster or a RayJob.

`load_cluster` reads resources as Ray's autoscaler does (a group's `resources`, then ray start's parameters, then a pod's
limits, then its requests) and rejects numbers that contradict each other, which Ray's own validation accepts. It imports no Ray
and queries no cloud.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kray.config.reading import constructed, located, read_bounded
from kray.errors import ConfigError

KINDS = ("ray up", "RayCluster", "RayJob")
# Suffixes of Kubernetes quantities that a CPU or GPU count can carry.
SCALES = {"m": 1e-3, "k": 1e3}
# Suffixes of Kubernetes quantities of memory, and of Docker's --shm-size.
BYTE_SCALES = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
DOCKER_SCALES = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30}


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes of one kind.

    Attributes:
        name: of the group.
        cpus: of one node, for actors.
        gpus: of one node, for actors.
        least: minimum number of nodes.
        most: maximum number of nodes.
        spot: whether the nodes can be preempted.
        idle_timeout_s: seconds after which an idle node is stopped; None: the cluster's setting.
        memory: main memory of one node, in bytes; None where the file does not say.
        shm: its /dev/shm, in bytes; None likewise.
        store: its object store by ray start's parameter, in bytes; None: Ray's default.
    """

    name: str
    cpus: float
    gpus: float
    least: int
    most: int
    spot: bool = False
    idle_timeout_s: float | None = None
    memory: int | None = None
    shm: int | None = None
    store: int | None = None

    @property
    def always(self) -> bool:
        """Whether the number of nodes is fixed."""
        return self.least == self.most


@dataclass(frozen=True, slots=True)
class Cluster:
    """Node groups of a cluster.

    Attributes:
        path: of the file.
        kind: of the file, one of KINDS.
        groups: the head first.
        most_workers: nodes besides the head that all groups may have together; None: no limit.
    """

    path: str
    kind: str
    groups: tuple[Group, ...]
    most_workers: int | None

    @property
    def head(self) -> Group:
        """The group of the head node."""
        return self.groups[0]

    @property
    def workers(self) -> tuple[Group, ...]:
        """The groups besides the head."""
        return self.groups[1:]


def load_cluster(path: str | Path) -> Cluster:
    """Read the cluster that a file describes.

    Raises:
        ConfigError: the file cannot be read or contradicts itself; the message names the file and the key.
    """
    name = str(path)
    kind, spec = _described(name)
    read = _kuberay_groups if kind in ("RayCluster", "RayJob") else _ray_up_groups
    try:
        groups = tuple(read(spec))
        most = _count(spec.get("max_workers", 2), "max_workers") if kind == "ray up" else None
        _refuse_contradictions(groups[1:], most)
    except ConfigError as error:
        raise ConfigError(located(str(error), name)) from None
    return Cluster(name, kind, groups, most)


def _described(path: str) -> tuple[str, Mapping[str, Any]]:
    """Return (kind, the mapping that holds the groups) of the one cluster in the file."""
    try:
        nodes = list(yaml.compose_all(read_bounded(path).decode(), yaml.SafeLoader))
        found = [constructed(node, path, yaml.SafeLoader) for node in nodes if node is not None]
        documents = [item for item in found if isinstance(item, Mapping)]
    except OSError as error:
        raise ConfigError(f"--cluster: {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        raise ConfigError(f"--cluster: {path} is not YAML: {' '.join(str(error).split())}") from error
    described: list[tuple[str, Any]] = []
    for item in documents:
        if "available_node_types" in item:
            described.append(("ray up", item))
        elif item.get("kind") == "RayCluster":
            described.append(("RayCluster", item.get("spec")))
        elif item.get("kind") == "RayJob":
            described.append(("RayJob", (item.get("spec") or {}).get("rayClusterSpec")))
    if len(described) != 1 or not isinstance(described[0][1], Mapping):
        wanted = "a ray up file (available_node_types), a RayCluster or a RayJob with a rayClusterSpec"
        raise ConfigError(
            f"--cluster: {path} describes {len(described) or 'no'} clusters; exactly one is needed: {wanted}"
        )
    return described[0]


def _ray_up_groups(spec: Mapping[str, Any]) -> Iterator[Group]:
    types, head, limit = spec["available_node_types"], spec.get("head_node_type"), spec.get("max_workers", 2)
    if not isinstance(types, Mapping) or head not in types:
        raise ConfigError(f"head_node_type is {head!r}, which is not one of available_node_types")
    # the head first, else in the order of the file
    for name in sorted(types, key=lambda name: name != head):
        group, key = types[name] or {}, f"available_node_types.{name}"
        resources = group.get("resources") or {}
        if "CPU" not in resources:
            raise ConfigError(
                f"{key}.resources has no CPU, and the file alone does not show how many; write {{CPU: n, GPU: n}}"
            )
        node = group.get("node_config") or {}
        market = (node.get("InstanceMarketOptions") or {}).get("MarketType")
        scheduling = node.get("scheduling") or []
        rules = [scheduling] if isinstance(scheduling, Mapping) else scheduling
        yield Group(
            name=name,
            cpus=_amount(resources["CPU"], f"{key}.resources.CPU"),
            gpus=_amount(resources.get("GPU", 0), f"{key}.resources.GPU"),
            least=1 if name == head else _count(group.get("min_workers", 0), f"{key}.min_workers"),
            most=1 if name == head else _count(group.get("max_workers", limit), f"{key}.max_workers"),
            spot=market == "spot" or any(r.get("preemptible") or r.get("provisioningModel") == "SPOT" for r in rules),
            idle_timeout_s=group.get("idle_timeout_s"),
            memory=_bytes(resources.get("memory"), f"{key}.resources.memory"),
            shm=_docker_shm(spec, group),
        )


def _docker_shm(spec: Mapping[str, Any], group: Mapping[str, Any]) -> int | None:
    """Return the bytes of --shm-size among the options with which containers are started."""
    own, common = group.get("docker") or {}, spec.get("docker") or {}
    options = [*(common.get("run_options") or []), *(own.get("worker_run_options") or [])]
    given = [str(option).partition("=")[2] for option in options if str(option).startswith("--shm-size=")]
    return _bytes(given[-1], "docker: --shm-size", DOCKER_SCALES) if given else None


def _kuberay_groups(spec: Mapping[str, Any]) -> Iterator[Group]:
    head = spec.get("headGroupSpec")
    if not isinstance(head, Mapping):
        raise ConfigError("headGroupSpec is missing")
    cpus, gpus = _pod_resources(head, "headGroupSpec")
    yield Group("head", cpus, gpus, 1, 1, False, None, *_pod_memory(head, "headGroupSpec"))
    for number, group in enumerate(spec.get("workerGroupSpecs") or []):
        key = f"workerGroupSpecs[{number}]"
        hosts = _count(group.get("numOfHosts", 1), f"{key}.numOfHosts")
        cpus, gpus = _pod_resources(group, key)
        memory, shm, store = _pod_memory(group, key)
        pod = (group.get("template") or {}).get("spec") or {}
        yield Group(
            name=str(group.get("groupName", number)),
            cpus=cpus,
            gpus=gpus,
            least=hosts * _count(group.get("minReplicas", 0), f"{key}.minReplicas"),
            most=hosts * _count(group.get("maxReplicas", 2**31 - 1), f"{key}.maxReplicas"),
            spot=any("spot" in f"{label}={value}" for label, value in (pod.get("nodeSelector") or {}).items()),
            idle_timeout_s=group.get("idleTimeoutSeconds"),
            memory=memory,
            shm=shm,
            store=store,
        )


def _pod_resources(group: Mapping[str, Any], key: str) -> tuple[float, float]:
    """Return (CPUs, GPUs) of the Ray container of a group's pod."""
    given, params = group.get("resources") or {}, group.get("rayStartParams") or {}
    containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or [{}]
    asked = containers[0].get("resources") or {}
    limits, requests = asked.get("limits") or {}, asked.get("requests") or {}
    cpus = _first(given.get("CPU"), params.get("num-cpus"), limits.get("cpu"), requests.get("cpu"))
    if cpus is None:
        raise ConfigError(f"{key} has no CPU in resources, rayStartParams.num-cpus or the container's limits")
    device = next((name for name in limits if name.endswith("gpu")), None)
    gpus = _first(given.get("GPU"), params.get("num-gpus"), limits[device] if device else None, 0)
    return float(math.ceil(_amount(cpus, f"{key}: CPUs"))), _amount(gpus, f"{key}: GPUs")


def _pod_memory(group: Mapping[str, Any], key: str) -> tuple[int | None, int | None, int | None]:
    """Return the bytes of (main memory, /dev/shm, object store) of the Ray container of a group's pod, None if not given."""
    pod = (group.get("template") or {}).get("spec") or {}
    container = (pod.get("containers") or [{}])[0]
    memory = _bytes(((container.get("resources") or {}).get("limits") or {}).get("memory"), f"{key}: memory")
    mounted = {
        mount.get("name") for mount in container.get("volumeMounts") or [] if mount.get("mountPath") == "/dev/shm"
    }
    sizes = [
        (volume.get("emptyDir") or {}).get("sizeLimit")
        for volume in pod.get("volumes") or []
        if volume.get("name") in mounted
    ]
    store = (group.get("rayStartParams") or {}).get("object-store-memory")
    return (
        memory,
        _bytes(next(iter(sizes), None), f"{key}: /dev/shm"),
        _bytes(store, f"{key}.rayStartParams.object-store-memory"),
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _amount(value: Any, key: str) -> float:
    """Return a number or a Kubernetes quantity as a float."""
    text = str(value)
    scale = SCALES.get(text[-1:], 1.0)
    try:
        amount = float(text[:-1] if text[-1:] in SCALES else text) * scale
    except ValueError:
        raise ConfigError(f"{key} must be a number, not {value!r}") from None
    if not 0 <= amount < math.inf:
        raise ConfigError(f"{key} must be at least 0, not {value!r}")
    return amount


def _bytes(value: Any, key: str, scales: Mapping[str, int] = BYTE_SCALES) -> int | None:
    """Return an amount of memory in bytes; None for None."""
    if value is None:
        return None
    text = str(value).strip()
    digits = text.rstrip("".join(set("".join(scales))))
    try:
        return int(float(digits) * scales[text[len(digits) :]])
    except (ValueError, KeyError, OverflowError):
        raise ConfigError(f"{key} must be an amount of memory such as 64Gi or 64g, not {value!r}") from None


def _count(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{key} must be a whole number of at least 0, not {value!r}")
    return value


def _refuse_contradictions(groups: tuple[Group, ...], most_workers: int | None) -> None:
    for group in groups:
        if group.least > group.most:
            raise ConfigError(
                f"group {group.name}: its minimum of {group.least} nodes is over its maximum of {group.most}"
            )
    least = sum(group.least for group in groups)
    if most_workers is not None and least > most_workers:
        raise ConfigError(f"the groups' minimums add up to {least} nodes, but max_workers is {most_workers}")
