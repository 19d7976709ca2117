"""On which addresses processes listen for TCP connections, as the kernel tells."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

# The state of a socket that listens.
LISTENS = "0A"


def open_to_others(pids: Iterable[int]) -> list[str]:
    """Return `process: address:port` of each socket of these processes that listens beyond the loopback interface."""
    listening = _listening()
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error, OSError):
            name = " ".join(psutil.Process(pid).cmdline())[:60]
            for inode in _sockets(pid):
                address, port = listening.get(inode, (ipaddress.ip_address("127.0.0.1"), 0))
                mapped = getattr(address, "ipv4_mapped", None) or address
                if not mapped.is_loopback:
                    found.append(f"{name}: {address}:{port}")
    return found


def descendants() -> list[int]:
    """Return this process and all that it has started."""
    return [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]


def _sockets(pid: int) -> list[str]:
    """Return the inodes of a process's sockets."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(entry)
            if target.startswith("socket:["):
                found.append(target[len("socket:[") : -1])
    return found


def _listening() -> dict[str, tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    """Return inode -> address and port of all sockets that listen."""
    found = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS:
                address, port = fields[1].split(":")
                found[fields[9]] = _address(address), int(port, 16)
    return found


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read an address, whose words of four bytes the kernel writes in the machine's order."""
    words = [int(text[i : i + 8], 16).to_bytes(4, "little") for i in range(0, len(text), 8)]
    return ipaddress.ip_address(b"".join(words))
