"""Servers that accept connections and answer none or all alike, and commands that are given their address."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from inline_jobs import ROOT

QUICK = str(ROOT / "configs" / "tiny.yaml")
# Seconds after which a command must have ended.
LIMIT_S = 15.0
# Arguments of each job that connects to Ray; {tmp} stands for a folder.
COMMANDS = {
    "train": ("--config", QUICK, "run.dir={tmp}/runs"),
    "serve": ("planner",),
    "status": ("--dir", "{tmp}"),
    "submit": ("jobs/train.py", "--config", QUICK),
    "compare": (str(ROOT / "configs" / "compare-quick.yaml"), "--dir", "{tmp}/study"),
    "evaluate": ("{tmp}/model", "--config", QUICK),
}


@contextlib.contextmanager
def listener(answer: bytes | None = None) -> Iterator[str]:
    """Yield host:port of a server that accepts every connection and sends nothing, or the same answer to all."""
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
