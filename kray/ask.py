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
import time
from pathlib import Path
from typing import Any

from kray.records import KrayError

NAMESPACE = "kray"
PLACE = "driver.json"
ANSWER_S = 15.0
KNOCK_S = 1.0


def driver_name(folder: Path) -> str:
    """A new one: the driver that the run had before may still be dying."""
    return f"{_stem(folder)}{secrets.token_hex(2)}"


def _stem(folder: Path) -> str:
    return f"kray-{folder.name}-driver-"


def announce(folder: Path) -> None:
    """Writes down where the run's driver can be asked."""
    import ray

    address = ray.get_runtime_context().gcs_address
    said = {"ray": address, "host": socket.gethostname(), "since": time.time()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLACE).write_text(json.dumps(said) + "\n")


def withdraw(folder: Path) -> None:
    """There is no driver any more."""
    (folder / PLACE).unlink(missing_ok=True)


def announced(folder: Path) -> str:
    """The address of the Ray in which the run's driver lives, if something answers there; else ""."""
    try:
        address = str(json.loads((folder / PLACE).read_text())["ray"])
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return address


class Asker:
    """A connection to a Ray. address: "host:port", or "auto" for the one of this machine, or of RAY_ADDRESS."""

    def __init__(self, address: str):
        from kray.launch import LOCAL_RAY

        os.environ.update(LOCAL_RAY)
        import ray

        self.ray = ray
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise KrayError(f"Ray at {address} cannot be reached: {str(error).strip().splitlines()[0]}") from error

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
            return self.ray.get(self.ray.get_actor(name, namespace=NAMESPACE).status.remote(), timeout=ANSWER_S)
        except GetTimeoutError:
            raise KrayError(f"{name} does not answer within {ANSWER_S:.0f} s") from None
        except (RayError, ValueError) as error:
            raise KrayError(f"{name} is gone: {str(error).strip().splitlines()[-1]}") from error

    def close(self) -> None:
        self.ray.shutdown()
