"""Finds the drivers of runs and requests their status. Ray is loaded with the first request.

A driver is a named actor in the namespace `kray`. As long as the job that started it runs, driver.json in the run folder
holds the address of its Ray.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kray.cluster.address import answers
from kray.cluster.token import AUTH_MODE
from kray.errors import KrayError
from kray.monitor.status import from_folder, newest_runs

NAMESPACE = "kray"
ADDRESS_FILE = "driver.json"
# Seconds for joining a Ray, for a driver's answer, and for a first sign that a Ray is there at all.
CONNECT_S = 30.0
ANSWER_S = 15.0
REACH_S = 1.0
# Seconds within which a driver that died has been started again.
RESTART_S = 120.0
# The newest runs whose drivers are looked for.
RECENT_RUNS = 20


def driver_name(folder: Path, restarts: int = 0) -> str:
    """Return a new actor name for the driver of a run; the actor of the driver before it may still be ending.

    Args:
        folder: The run folder.
        restarts: Drivers of the run that have died before.
    """
    return f"{_name_prefix(folder)}{restarts}-{secrets.token_hex(2)}"


def _name_prefix(folder: Path) -> str:
    return f"kray-{folder.name}-driver-"


def write_driver_address(folder: Path) -> None:
    """Write the address of the connected Ray to driver.json in a run folder."""
    import ray

    # Ray sets the mode where it starts a cluster, and needs it where one is joined.
    address, auth = ray.get_runtime_context().gcs_address, os.environ.get(AUTH_MODE, "")
    content = {"ray": address, "auth": auth, "host": socket.gethostname(), "since": time.time()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADDRESS_FILE).write_text(json.dumps(content) + "\n")


def remove_driver_address(folder: Path) -> None:
    """Remove driver.json: the run has no driver any more."""
    # Also where the folder cannot be written any more: nothing will answer at the address.
    with contextlib.suppress(OSError):
        (folder / ADDRESS_FILE).unlink()


def read_driver_address(folder: Path) -> tuple[str, str]:
    """Return (address, RAY_AUTH_MODE) of the Ray in which a run's driver runs; "" for both if nothing answers there."""
    try:
        content = json.loads((folder / ADDRESS_FILE).read_text())
        address, auth = str(content["ray"]), str(content.get("auth", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "", ""
    return (address, auth) if answers(address, REACH_S) else ("", "")


class DriverClient:
    """A connection to a Ray, for requests to the drivers that run there."""

    def __init__(self, address: str, auth: str = ""):
        """Join a Ray.

        Args:
            address: host:port of its GCS, or "auto" for that of RAY_ADDRESS or of this machine.
            auth: The value of RAY_AUTH_MODE where the environment sets none; the token is this user's.

        Raises:
            KrayError: It cannot be joined within CONNECT_S.
        """
        from kray.cluster.session import LOCAL_RAY

        # Ray reads these when it is imported.
        os.environ.update(LOCAL_RAY)
        if auth:
            os.environ.setdefault(AUTH_MODE, auth)
        import ray

        self._ray = ray
        results: list[BaseException | None] = []

        def connect() -> None:
            try:
                ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
                results.append(None)
            except Exception as error:
                results.append(error)

        # In a thread, because Ray itself would try for minutes.
        connecting = threading.Thread(target=connect, daemon=True)
        connecting.start()
        connecting.join(CONNECT_S)
        failure = results[0] if results else f"no answer within {CONNECT_S:.0f} s"
        if failure is not None:
            raise KrayError(f"Ray at {address} cannot be reached: {str(failure).strip().splitlines()[0]}")

    def driver_names(self, folder: Path | None = None) -> list[str]:
        """Return the actor names of the drivers that run there, or of those of one run folder, sorted."""
        actors = self._ray.util.list_named_actors(all_namespaces=True)
        prefix = _name_prefix(folder) if folder else "kray-"
        names = [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]
        return sorted(name for name in names if name.startswith(prefix) and "-driver-" in name)

    def status(self, name: str) -> dict[str, Any]:
        """Request the status of a driver.

        Raises:
            KrayError: The driver is gone or does not answer within ANSWER_S.
        """
        from ray.exceptions import GetTimeoutError, RayError

        try:
            actor = self._ray.get_actor(name, namespace=NAMESPACE)
            found: Any = self._ray.get(actor.status.remote(), timeout=ANSWER_S)
            return found
        except GetTimeoutError:
            raise KrayError(f"{name} does not answer within {ANSWER_S:.0f} s") from None
        except (RayError, ValueError) as error:
            raise KrayError(f"{name} is gone: {str(error).strip().splitlines()[-1]}") from error

    def close(self) -> None:
        """Leave the Ray."""
        self._ray.shutdown()


class RunMonitor:
    """Follows one run: requests the status from its driver while that answers, and reads the run folder otherwise."""

    def __init__(self, run: str, base: Path, address: str, client: type[DriverClient] = DriverClient):
        """Find the run and its driver.

        Args:
            run: A folder, the name of a run in `base`, or "" for a run that is under way, else the newest one.
            base: The folder of run folders.
            address: Of a Ray to look in first, "" for none.
            client: How a Ray is connected to.

        Raises:
            KrayError: There is no such run.
        """
        self.base, self._make_client = base, client
        self.folder = self._find(run)
        # The driver's actor name, and why its status could not be requested.
        self._driver = self._failure = ""
        self._client: DriverClient | None = None
        if address:
            self._connect(address, "")
        if not self._driver:
            for folder in [self.folder] if self.folder else newest_runs(base)[:RECENT_RUNS]:
                found, auth = read_driver_address(folder)
                if found:
                    self._connect(found, auth, folder)
                    break
        if not self._driver and self.folder is None:
            runs = newest_runs(base)
            if not runs:
                raise KrayError(_no_run(base))
            self.folder = runs[0]

    def status(self) -> dict[str, Any]:
        """Return the status now, from the driver or else from the folder; see kray.monitor.status.

        Raises:
            KrayError: The driver is gone and the folder holds nothing yet.
        """
        if self._client is None and self.folder is not None and (found := read_driver_address(self.folder))[0]:
            # The driver was not there the last time.
            self._connect(*found)
        while self._client is not None and self._driver:
            try:
                status = self._client.status(self._driver)
                self.folder = Path(status["folder"])
                return status
            except KrayError as error:
                self._failure, before = str(error), self._driver
                self._driver = self._successor() or self._driver
                if self._driver != before:
                    continue
                if self.folder is None or not (self.folder / "metrics.jsonl").is_file():
                    raise
                break
        assert self.folder is not None
        return from_folder(self.folder) | ({"said": self._failure} if self._failure else {})

    def poll(self, every_s: float) -> Iterator[dict[str, Any]]:
        """Yield the status every `every_s` seconds until the run has ended.

        A run whose driver has died goes on when another one is started within RESTART_S.
        """
        live_at = time.monotonic()
        while True:
            yield (status := self.status())
            live_at = time.monotonic() if status["live"] else live_at
            ended = status["state"] == "finished" or not (status["live"] or self.expects_driver)
            if ended or time.monotonic() - live_at > RESTART_S:
                return
            time.sleep(every_s)

    @property
    def expects_driver(self) -> bool:
        """Whether the run folder names a Ray that answers: a driver runs there, or another one is to be started."""
        return self.folder is not None and bool(read_driver_address(self.folder)[0])

    def close(self) -> None:
        """Leave the Ray, if one was joined."""
        if self._client is not None:
            self._client.close()

    def _successor(self) -> str:
        """Return the name of the run's driver now, which may have been started again; "" without one."""
        from ray.exceptions import RayError

        try:
            names = self._client.driver_names(self.folder) if self._client is not None and self.folder else []
        except (RayError, RuntimeError, ConnectionError):
            return ""
        return names[-1] if names else ""

    def _find(self, run: str) -> Path | None:
        if not run:
            return None
        for folder in (Path(run).expanduser(), self.base / run):
            if folder.is_dir():
                return folder
        raise KrayError(f"{run} is neither a folder nor a run in {self.base}")

    def _connect(self, address: str, auth: str, folder: Path | None = None) -> None:
        """Connect to the driver, if there is one; a failure is reported with the status from the folder."""
        try:
            client = self._make_client(address, auth)
        except KrayError as error:
            self._failure = str(error)
            self.folder = self.folder or folder
            return
        names = client.driver_names(self.folder or folder) or ([] if self.folder else client.driver_names())
        if not names:
            client.close()
            return
        self._client, self._driver = client, names[-1]


def _no_run(base: Path) -> str:
    return (
        f"no run is under way on this machine, and {base} holds no run. For a run on a cluster call this on one of its nodes "
        "(RAY_ADDRESS=auto, or jobs/submit.py jobs/status.py); for runs in another folder give --dir"
    )
