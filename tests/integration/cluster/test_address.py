"""Commands against addresses that do not answer, and a real GCS."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kray.cluster.address import (
    API,
    CLUSTER,
    REACH_S,
    answers,
    require_cluster,
)

ROOT = Path(__file__).parents[3]


QUICK = str(ROOT / "configs" / "quickstart.yaml")


LIMIT_S = 15.0


@pytest.fixture(autouse=True)
def no_address(monkeypatch):
    for name in (CLUSTER, API, "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def listener(answer: bytes | None = None) -> Iterator[str]:
    """host:port of a server that takes every connection, and says nothing or the same to all of them."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    if answer is not None:
                        held[-1].sendall(answer)
                        held[-1].shutdown(socket.SHUT_WR)

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
    for connection in held:
        connection.close()


COMMANDS = {
    "train": ("--config", QUICK, "run.dir={tmp}/runs"),
    "serve": ("planner",),
    "status": ("--dir", "{tmp}"),
    "submit": ("jobs/train.py", "--config", QUICK),
    "compare": (str(ROOT / "configs" / "compare-quick.yaml"), "--dir", "{tmp}/study"),
    "evaluate": ("{tmp}/model", "--config", QUICK),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_process_ends_in_time_where_nobody_answers(name, tmp_path):
    """Each command as a process of its own, against a port that takes connections and never says anything."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    with listener() as place:
        variable = {API: f"http://{place}"} if name == "submit" else {CLUSTER: place}
        arguments = [part.replace("{tmp}", str(tmp_path)) for part in COMMANDS[name]]
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, f"jobs/{name}.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60,
            env=os.environ | variable,
        )  # fmt: skip
        took = time.monotonic() - started
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"no answer from {place}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert REACH_S <= took < LIMIT_S


def test_a_real_gcs_answers(ray_local, monkeypatch):
    address = ray_local.get_runtime_context().gcs_address
    assert answers(address, REACH_S)
    monkeypatch.setenv(CLUSTER, f" {address} ")
    assert require_cluster() == address == os.environ[CLUSTER]
    monkeypatch.setenv(CLUSTER, " auto ")
    assert require_cluster() == "auto"
