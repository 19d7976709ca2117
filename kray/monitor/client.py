"""Finds drivers that run and asks them how they stand. Ray is loaded when one is asked.

A driver is a named actor of the namespace `kray`, and its run's folder says where its Ray is (driver.json, as long as
whoever started it follows it).
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from kray.cluster.address import answers
from kray.errors import KrayError
from kray.monitor.status import from_folder, newest_runs
from kray.monitor.view import nothing

NAMESPACE = "kray"
PLACE = "driver.json"
CONNECT_S = 30.0
ANSWER_S = 15.0
KNOCK_S = 1.0
AUTH = "RAY_AUTH_MODE"
RECENT = 20  # of the newest runs whose drivers are looked for


def driver_name(folder: Path, restarts: int = 0) -> str:
    """A new one: the driver that the run had before may still be dying. restarts: drivers of the run that have died."""
    return f"{_stem(folder)}{restarts}-{secrets.token_hex(2)}"


def _stem(folder: Path) -> str:
    return f"kray-{folder.name}-driver-"


def announce(folder: Path) -> None:
    """Writes down where the run's driver can be asked."""
    import ray

    address = ray.get_runtime_context().gcs_address
    mode = os.environ.get(AUTH, "")  # Ray sets it where it starts a cluster, and needs it where one is joined
    said = {"ray": address, "auth": mode, "host": socket.gethostname(), "since": time.time()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLACE).write_text(json.dumps(said) + "\n")


def withdraw(folder: Path) -> None:
    """There is no driver any more."""
    (folder / PLACE).unlink(missing_ok=True)


def announced(folder: Path) -> tuple[str, str]:
    """(address, how it authenticates) of the Ray in which the run's driver lives; "" if nothing answers there."""
    try:
        said = json.loads((folder / PLACE).read_text())
        address, auth = str(said["ray"]), str(said.get("auth", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "", ""
    return (address, auth) if answers(address, KNOCK_S) else ("", "")


class Asker:
    """A connection to a Ray. address: "host:port", or "auto" for the one of this machine, or of RAY_ADDRESS. auth: how it
    authenticates, where RAY_AUTH_MODE does not say; the token is this user's."""

    def __init__(self, address: str, auth: str = ""):
        from kray.cluster.session import LOCAL_RAY

        os.environ.update(LOCAL_RAY)  # before Ray is loaded
        if auth:
            os.environ.setdefault(AUTH, auth)
        import ray

        self.ray = ray
        failures: list[BaseException | None] = []

        def connect() -> None:
            try:
                ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
                failures.append(None)
            except Exception as error:
                failures.append(error)

        connecting = threading.Thread(target=connect, daemon=True)  # Ray itself would go on for minutes
        connecting.start()
        connecting.join(CONNECT_S)
        failure = failures[0] if failures else f"no answer within {CONNECT_S:.0f} s"
        if failure is not None:
            raise KrayError(f"Ray at {address} cannot be reached: {str(failure).strip().splitlines()[0]}")

    def names(self, folder: Path | None = None) -> list[str]:
        """Of the drivers that run there, or of the one of a run's folder."""
        named = self.ray.util.list_named_actors(all_namespaces=True)
        start = _stem(folder) if folder else "kray-"
        mine = [one["name"] for one in named if one["namespace"] == NAMESPACE]
        return sorted(name for name in mine if name.startswith(start) and "-driver-" in name)

    def status(self, name: str) -> dict[str, Any]:
        """Raises KrayError when the driver is gone or does not answer within ANSWER_S."""
        from ray.exceptions import GetTimeoutError, RayError

        try:
            actor = self.ray.get_actor(name, namespace=NAMESPACE)
            found: Any = self.ray.get(actor.status.remote(), timeout=ANSWER_S)
            return found
        except GetTimeoutError:
            raise KrayError(f"{name} does not answer within {ANSWER_S:.0f} s") from None
        except (RayError, ValueError) as error:
            raise KrayError(f"{name} is gone: {str(error).strip().splitlines()[-1]}") from error

    def close(self) -> None:
        self.ray.shutdown()


class Sight:
    """One run, looked at again and again: its driver while that answers, else its folder.

    run: a folder, a run's name, or "" for what runs, else the newest in `base`. address: of a Ray to look in first, "" for
    none. Raises KrayError where there is nothing to see.
    """

    def __init__(self, run: str, base: Path, address: str, ask: type[Asker] = Asker):
        self.base, self.ask = base, ask
        self.folder = self._find(run)
        self._name = self._failure = ""  # of the driver; why it cannot be asked
        self._asker: Asker | None = None
        if address:
            self._connect(address, "")
        if not self._name:
            for folder in [self.folder] if self.folder else newest_runs(base)[:RECENT]:
                there, auth = announced(folder)
                if there:
                    self._connect(there, auth, folder)
                    break
        if not self._name and self.folder is None:
            runs = newest_runs(base)
            if not runs:
                raise KrayError(nothing(base))
            self.folder = runs[0]

    def look(self) -> dict[str, Any]:
        """The status, as kray.monitor.status describes it."""
        if self._asker is None and self.folder is not None and (place := announced(self.folder))[0]:
            self._connect(*place)  # there was no driver the last time
        while self._asker is not None and self._name:
            try:
                found = self._asker.status(self._name)
                self.folder = Path(found["folder"])
                return found
            except KrayError as error:
                self._failure, before = str(error), self._name
                self._name = self._successor() or self._name
                if self._name != before:
                    continue
                if self.folder is None or not (self.folder / "metrics.jsonl").is_file():
                    raise
                break
        assert self.folder is not None
        return from_folder(self.folder) | ({"said": self._failure} if self._failure else {})

    @property
    def announced(self) -> bool:
        """Whether the run's folder says that a driver goes on, or is to come."""
        return self.folder is not None and bool(announced(self.folder)[0])

    def close(self) -> None:
        if self._asker is not None:
            self._asker.close()

    def _successor(self) -> str:
        """The driver of the run now, which was perhaps started again under another name; "" without one."""
        from ray.exceptions import RayError

        try:
            names = self._asker.names(self.folder) if self._asker is not None and self.folder is not None else []
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
        """To the driver, if there is one; what keeps it from being asked is told with the folder's status."""
        try:
            asker = self.ask(address, auth)
        except KrayError as error:
            self._failure = str(error)
            self.folder = self.folder or folder
            return
        names = asker.names(self.folder or folder) or ([] if self.folder else asker.names())
        if not names:
            asker.close()
            return
        self._asker, self._name = asker, names[-1]
