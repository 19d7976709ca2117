"""Ray's real autoscaler over nodes that are processes of this machine: what a cloud would do, in seconds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from typing import Any

HEAD_ID = "f" * 51 + "00000"
ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "RAY_NODE_TYPE_NAME": "ray.head.default",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@contextlib.contextmanager
def autoscaling_cluster(groups: dict[str, dict[str, Any]], head_cpus: int = 0, idle_s: float = 6.0) -> Iterator[Any]:
    """Connects this process to a new cluster. groups: node type -> {resources, min_workers, max_workers}.

    The head and what it starts see ENVIRONMENT; it is left in place, so use this in a process of its own.
    """
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.autoscaler._private.util import validate_config
    from ray.cluster_utils import Cluster

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "gcs_address": f"127.0.0.1:{port}",
        "launch_multiple": True,
        "head_node_id": HEAD_ID,
    }
    head = {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0}
    config = {
        "cluster_name": "autoscaling-test",
        "provider": provider,
        "max_workers": sum(group["max_workers"] for group in groups.values()),
        "idle_timeout_minutes": idle_s / 60,
        "upscaling_speed": 100,
        "auth": {},
        "available_node_types": {name: {"node_config": {}, **group} for name, group in groups.items()}
        | {"ray.head.default": head},
        "head_node_type": "ray.head.default",
        **{key: {} for key in ("file_mounts", "docker")},
        "file_mounts_sync_continuously": False,
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{key: [] for key in ("setup_commands", "initialization_commands", "head_setup_commands")},
        **{key: [] for key in ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")},
    }
    validate_config(config)  # the autoscaler would only say so in a log file
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(config, file)
    cluster = Cluster()
    cluster.add_node(
        node_ip_address="127.0.0.1", gcs_server_port=port, num_cpus=head_cpus, autoscaling_config=file.name
    )
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        yield ray
    finally:
        with contextlib.suppress(Exception):
            wait_for_nodes(ray, 0, 60.0)  # or their processes outlive the head
        ray.shutdown()
        cluster.shutdown()
        os.unlink(file.name)


def workers(ray: Any) -> list[str]:
    """Ids of the live nodes without the head."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != HEAD_ID]


def wait_for_nodes(ray: Any, count: int, limit_s: float) -> float:
    """Seconds until there are so many worker nodes. Raises TimeoutError."""
    started = time.monotonic()
    while len(workers(ray)) != count:
        if time.monotonic() - started > limit_s:
            raise TimeoutError(f"{len(workers(ray))} nodes after {limit_s:.0f} s, not {count}")
        time.sleep(0.2)
    return time.monotonic() - started


async def preempt(ray: Any, node_id: str, notice_s: float = 1.0) -> None:
    """A spot node hears that it goes, and a moment later it is gone."""
    import psutil
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + notice_s) * 1000)
    address = ray.get_runtime_context().gcs_address
    accepted, why = GcsClient(address).drain_node(node_id, reason, "requested by a test", deadline_ms)
    assert accepted, why
    await asyncio.sleep(notice_s)
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.info["name"] == "raylet" and node_id in " ".join(process.cmdline()) + str(process.environ()):
                process.kill()
