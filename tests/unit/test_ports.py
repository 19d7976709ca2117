"""Ports that are chosen before their server listens."""

import re
import socket
from pathlib import Path

import pytest

from kray import ports

ROOT = Path(__file__).parents[2]


def test_a_port_is_free_and_is_given_to_nobody_who_asks_for_any():
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(given.read_text().split()[0]) if given.exists() else 32768
    chosen = {ports.free_port() for _ in range(50)}
    assert len(chosen) > 40
    assert max(chosen) < lowest
    with socket.socket() as server:
        server.bind(("127.0.0.1", chosen.pop()))


def test_a_port_in_use_is_passed_over(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", ports.free_port()))
        server.listen()
        used = server.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", range(used, used + 2))
        monkeypatch.setattr(ports, "TRIES", 2)
        assert ports.free_port() == used + 1
        monkeypatch.setattr(ports, "PORTS", range(used, used + 1))
        monkeypatch.setattr(ports, "TRIES", 1)
        with pytest.raises(OSError, match=f"no free port: 1 of {used} to {used} were tried"):
            ports.free_port()


def test_nothing_in_kray_listens_later_on_a_port_of_the_system():
    found = re.compile(r"\.bind\(\(.*, 0\)\)")
    assert [str(file) for file in (ROOT / "kray").rglob("*.py") if found.search(file.read_text())] == []
