"""Ports for servers that begin to listen a while after their port has been chosen."""

from __future__ import annotations

import random
import socket

# Below what systems give to outgoing connections and to port 0 (Linux 32768-60999), above what Ray gives to its workers
# (10002-19999), and apart from Kubernetes' node ports (30000-32767): nobody else takes one of these by itself meanwhile.
PORTS = range(20000, 30000)
TRIES = 100


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that is free now and that no system gives away by itself.

    Args:
        host: Where it is to be free, "" for all addresses.

    Raises:
        OSError: None was found.
    """
    # Processes that ask at the same time must not get the same one, whatever seeds they have set.
    chosen = random.SystemRandom()
    for port in chosen.sample(PORTS, TRIES):
        with socket.socket() as probe:
            # A port whose former server has closed its connections a moment ago is free for the next.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port: {TRIES} of {PORTS.start} to {PORTS.stop - 1} were tried")
