"""A Ray cluster of several nodes on one machine, whose nodes can be taken away, and an MLflow server that can be killed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from kray.cluster.session import LOCAL_RAY
from kray.cluster.token import protect_token

STORE = 100 * 2**20  # bytes of a node's object store


class Nodes:
    """A head for drivers, and `count` nodes for engines and ranks; connects this process to it."""

    def __init__(self, count: int, cpus: int):
        os.environ.update(LOCAL_RAY)
        os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"  # nodes that go are no news here
        import ray
        from ray.cluster_utils import Cluster

        protect_token()
        self.ray, self.cpus = ray, cpus
        head = {"num_cpus": 0, "node_ip_address": "127.0.0.1", "object_store_memory": STORE}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        self.nodes = [self._add() for _ in range(count)]
        # Later nodes are added from a thread: it may set no signal handlers, and a node would end with the thread.
        self.cluster._shutdown_at_exit = False

    def _add(self) -> Any:
        return self.cluster.add_node(
            num_cpus=self.cpus, node_ip_address="127.0.0.1", object_store_memory=STORE, wait=False
        )

    def remove(self, index: int) -> None:
        """Kills a node with all that runs on it; another one comes in its place."""
        self.cluster.remove_node(self.nodes.pop(index), allow_graceful=False)
        self.nodes.append(self._add())

    def preempt(self, index: int, notice_s: float = 1.0) -> None:
        """Announce that a node will be preempted, remove it a moment later, and add another in its place."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
        client = GcsClient(self.ray.get_runtime_context().gcs_address)
        deadline_ms = int((time.time() + notice_s) * 1000)
        client.drain_node(self.nodes[index].node_id, reason, "spot capacity is needed elsewhere", deadline_ms)
        time.sleep(notice_s)
        self.remove(index)

    def close(self) -> None:
        """End Ray and all nodes."""
        self.ray.shutdown()
        self.cluster.shutdown()


class Server:
    """An MLflow server on this machine, that keeps its data over restarts."""

    def __init__(self, folder: Path, port: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, port
        self.process: subprocess.Popen | None = None

    @property
    def uri(self) -> str:
        """Where the server answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, limit_s: float = 300.0) -> None:
        """Start the server and return when it answers.

        Raises:
            TimeoutError: It does not answer in time.
        """
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        store += ["--artifacts-destination", f"{self.folder}/artifacts"]
        listen = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *listen, *store],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
                cwd=self.folder,
            )
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.3)
        raise TimeoutError(f"MLflow did not answer at {self.uri} within {limit_s:.0f} s; see {self.folder}/server.log")

    def kill(self) -> None:
        """Kill the server, if it runs."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
