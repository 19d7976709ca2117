"""Keeps the gRPC server of every Serve replica off the network.

Beside the HTTP proxy, which is what clients use, each replica listens for calls of other deployments, on all interfaces and
a port that nobody chose; it unpickles what it gets. kray's services get no such calls.
"""

from __future__ import annotations

import sys
from typing import Any

# The module that runs in a replica's process, and its function that opens the port.
_REPLICA, _OPEN = "ray.serve._private.replica", "add_port_to_grpc_server"
LOOPBACK = "127.0.0.1"


def stay_local() -> None:
    """Have this process's replica listen where nobody on the network reaches it; called before it is up.

    Where the environment has Serve's proxies use gRPC, which is off by default, they may run on other nodes: then the replica
    listens at the address that its node has in the cluster. Does nothing outside of a replica's process.
    """
    module: Any = sys.modules.get(_REPLICA)
    open_port = getattr(module, _OPEN, None)
    if open_port is None:
        return
    host = _host()
    # A class with two replicas in one process is not made, but a second call must not change anything.
    if getattr(open_port, "stays_local", False):
        return

    def open_local(server: Any, address: str) -> int:
        return int(open_port(server, f"{host}:{address.rpartition(':')[2]}"))

    open_local.stays_local = True  # type: ignore[attr-defined]
    setattr(module, _OPEN, open_local)


def _host() -> str:
    import ray
    from ray.serve._private import constants

    names = ("RAY_SERVE_PROXY_USE_GRPC", "RAY_SERVE_USE_GRPC_BY_DEFAULT")
    if not any(getattr(constants, name, False) for name in names):
        return LOOPBACK
    node = ray.util.get_node_ip_address()
    return f"[{node}]" if ":" in node else node
