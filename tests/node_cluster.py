"""A Ray cluster whose nodes are processes of this machine, each node a session with a loopback address of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from kray.cluster.lost_ray import in_sessions
from kray.cluster.session import LOCAL_RAY
from kray.cluster.token import AUTH_MODE, protect_token
from kray.faults.jobs import command_of
from kray.ports import free_port

# Ray replaces 127.0.0.1 by the machine's address in a cluster of several nodes, and takes other loopback addresses as they are.
RAY = Path(sys.executable).parent / "ray"
NO_DASHBOARD = ("--include-dashboard=false", "--dashboard-port=0")
STORE = 100 * 2**20  # bytes of a node's object store
# Ray refuses several nodes where this is 0, as kray has it for a Ray of its own (kray/cluster/session.py).
VARIABLES = LOCAL_RAY | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", AUTH_MODE: "token"}


class NodeCluster:
    """A head without CPUs, and named nodes.

    Attributes:
        address: Of the GCS.
        nodes: Name -> the process that leads a node's session.
    """

    def __init__(self, folder: Path, cpus: Mapping[str, int]):
        """Start the head and the nodes.

        Args:
            folder: For the nodes' logs.
            cpus: Name of each node -> its CPUs.
        """
        protect_token()
        self.folder, self.nodes, self._ips = folder, {}, {}
        self.address = f"127.0.0.2:{free_port()}"
        try:
            self._start("head", "--head", f"--port={self.address.rpartition(':')[2]}", "--num-cpus=0", *NO_DASHBOARD)
            for name, count in cpus.items():
                self.add(name, count)
        except BaseException:
            self.close()
            raise

    def add(self, name: str, cpus: int) -> None:
        """Start a node that joins the cluster."""
        self._start(name, f"--address={self.address}", f"--num-cpus={cpus}")

    def _start(self, name: str, *arguments: str) -> None:
        self._ips[name] = f"127.0.0.{len(self._ips) + 2}"
        common = [f"--node-ip-address={self._ips[name]}", f"--object-store-memory={STORE}", "--block"]
        common += ["--dashboard-agent-listen-port=0"]
        log = self.folder / f"{name}.log"
        with log.open("w") as output:
            self.nodes[name] = subprocess.Popen(
                [str(RAY), "start", *arguments, *common],
                stdout=output,
                stderr=output,
                env=os.environ | VARIABLES | {"RAY_BACKEND_LOG_LEVEL": "fatal"},
                start_new_session=True,
            )

        def is_up() -> bool:
            assert self.nodes[name].poll() is None, log.read_text()
            return "Ray runtime started" in log.read_text()

        wait_until(is_up, f"node {name} is up, see {log}")

    def find(self, kind: str) -> dict[int, str]:
        """Return the actors of a kind (Driver, Engine, Learner), whatever else they do, with the names of their nodes."""
        title = re.compile(rf"ray::[A-Za-z]*{kind}\b")
        places = {pid: name for name in self.nodes for pid in self.processes(name)}
        return {pid: name for pid, name in places.items() if title.search(command_of(pid))}

    def place_of(self, kind: str) -> str:
        """Return the node of the one actor of this kind."""
        (name,) = self.find(kind).values()
        return name

    def processes(self, name: str) -> list[int]:
        """Return the processes of a node."""
        return in_sessions({self.nodes[name].pid})

    def kill(self, name: str, part: str = "") -> None:
        """Kill all processes of a node, or those of them whose command holds `part`."""
        for pid in self.processes(name):
            if part in command_of(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def joined_from(self, name: str) -> dict[str, str]:
        """Return the environment of a job that joins the cluster on a node; see joining_job.py."""
        return VARIABLES | {"RAY_ADDRESS": self.address, "KRAY_TESTS_NODE": self._ips[name]}

    def left(self) -> dict[int, str]:
        """Return the processes of drivers, learners and engines, with their nodes."""
        return {pid: name for kind in ("Driver", "Learner", "Engine") for pid, name in self.find(kind).items()}

    def close(self) -> None:
        """Kill all that is left."""
        for name, process in self.nodes.items():
            self.kill(name)
            process.wait(20)


def wait_until(reached: Callable[[], object], what: str, limit_s: float = 90.0) -> float:
    """Return the seconds until this is so."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < limit_s, f"not within {limit_s:.0f} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - began
