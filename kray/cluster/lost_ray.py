"""Notices that the Ray of this process is lost, and ends what is left of one that was started here.

Ray itself ends a process only about a minute after its GCS has gone, without a word, and waits without end for a lost node.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kray.cluster.address import answers
from kray.cluster.process_identity import identity, is_dead, kill
from kray.cluster.session import connected

logger = logging.getLogger(__name__)

# Processes without which a node is lost.
NEEDED = ("raylet", "gcs_server")
# Seconds for which the GCS of a cluster may not answer: below those after which Ray ends this process.
GCS_AWAY_S = 40.0
# Seconds for one answer of a GCS, and for Ray to leave.
ANSWER_S, SHUTDOWN_S = 3.0, 3.0


class RayLoss:
    """Tells why the Ray that this process is connected to is lost.

    Attributes:
        local: It was started by this process, and `why` waits for nothing.
    """

    def __init__(self) -> None:
        import ray

        context = ray.get_runtime_context()
        self._address, self._node_id = context.gcs_address, context.get_node_id()
        self._answered_at = time.monotonic()
        self.local = bool(local_processes())
        self._raylet = {} if self.local else _joined_raylet()

    def why(self) -> str:
        """Return why Ray is lost, "" while it is not."""
        if not connected():
            return "Ray has been disconnected"
        return self.node_ended() or ("" if self.local else self._cluster_loss(time.monotonic()))

    def node_ended(self) -> str:
        """Return how the Ray node of this process has ended, "" while it has not; waits for nothing."""
        if not self.local:
            return "the raylet of its node has ended" if is_dead(self._raylet) else ""
        codes = {kind: process.poll() for kind, process in local_processes() if kind in NEEDED}
        ended = [f"its {kind} ended {_ending(code)}" for kind, code in codes.items() if code is not None]
        return " and ".join(ended)

    def _cluster_loss(self, now: float) -> str:
        if answers(self._address, ANSWER_S):
            self._answered_at = time.monotonic()
            return "" if self._node_alive() else "the node that this job runs on is dead, by its GCS"
        away = now - self._answered_at
        return f"its GCS at {self._address} has not answered for {away:.0f} s" if away > GCS_AWAY_S else ""

    def _node_alive(self) -> bool:
        import ray

        alive = {node["NodeID"]: node["Alive"] for node in ray.nodes()}
        return alive.get(self._node_id, True)


def _joined_raylet() -> dict[str, Any]:
    """Return what identifies the raylet that this process has joined; {} where it is none of the processes seen here."""
    from ray._private import worker

    node: Any = worker._global_node
    name = f"--raylet_socket_name={node.raylet_socket_name}"
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if name.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                return identity(int(folder.name))
    return {}


def this_job() -> dict[str, str]:
    """Return what `is_gone` needs to know of this process's job in the Ray that it is connected to."""
    import ray

    context = ray.get_runtime_context()
    return {"address": context.gcs_address, "job": context.get_job_id()}


def is_gone(job: Mapping[str, Any]) -> bool:
    """Return whether the Ray of a job that `this_job` returned answers here and says that the job has ended."""
    # A loopback address is another Ray's on another machine; on this one the job's processes tell.
    address = str(job.get("address", ""))
    return bool(address) and not address.startswith(("127.", "localhost", "[::1]")) and has_ended(job)


def has_ended(job: Mapping[str, Any]) -> bool:
    """Return whether the Ray at a job's address answers and says that the job has ended, or knows it no more."""
    address, name = str(job["address"]), job.get("job")
    if not answers(address, ANSWER_S):
        return False
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    try:
        jobs = GcsClient(address).get_all_job_info(timeout=ANSWER_S)
    except Exception as error:
        logger.info(f"Ray at {address} does not tell whether job {name} goes on: {error}")
        return False
    return all(info.is_dead for key, info in jobs.items() if key.hex() == name)


def local_processes() -> list[tuple[str, Any]]:
    """Return (kind, Popen) of the Ray that this process has started, [] where it has joined one."""
    from ray._private import worker

    node = worker._global_node
    if node is None or not node.head:
        return []
    return [(kind, info.process) for kind, infos in node.all_processes.items() for info in infos]


def end_lost_ray(driver: Mapping[str, Any]) -> None:
    """Leave a lost Ray, and kill the driver of this job, as nobody else can; where Ray was started here, kill all of it.

    What the job has on other nodes ends with their raylets, which give up a GCS after 60 s.

    Args:
        driver: As `kray.cluster.process_identity.this_process` describes it; {} where it is not known.
    """
    kill(driver)
    sessions = {process.pid for _, process in local_processes()}
    for pid in in_sessions(sessions):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    if connected():
        import ray
        from ray._private import worker

        # It may wait for a GCS that is gone, and would do so once more at the end of this process.
        atexit.unregister(worker.shutdown)
        leaving = threading.Thread(target=ray.shutdown, daemon=True)
        leaving.start()
        leaving.join(SHUTDOWN_S)


def in_sessions(sessions: set[int]) -> list[int]:
    """Return the processes whose session is one of these: Ray's, each of which leads one, and what they have started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) in sessions:
                found.append(int(folder.name))
    return found


def _ending(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
