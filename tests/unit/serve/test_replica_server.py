"""A replica's own gRPC server is not opened to the network."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from kray.serve.replica_server import stay_local


class Server:
    def __init__(self):
        self.opened: list[str] = []


def open_port(server: Server, address: str) -> int:
    server.opened.append(address)
    return 4711


@pytest.fixture
def replica(monkeypatch):
    """The module of a replica's process, and the constants that it was started with."""
    module, constants = SimpleNamespace(add_port_to_grpc_server=open_port), SimpleNamespace()
    ray = SimpleNamespace(util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.7"))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.serve", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray.serve._private", SimpleNamespace(constants=constants, replica=module))
    monkeypatch.setitem(sys.modules, "ray.serve._private.replica", module)
    return SimpleNamespace(module=module, constants=constants)


def test_replica_listens_on_the_loopback_interface(replica):
    server = Server()
    stay_local()
    stay_local()
    assert replica.module.add_port_to_grpc_server(server, "[::]:0") == 4711
    assert server.opened == ["127.0.0.1:0"]


@pytest.mark.parametrize(("node", "host"), [("10.0.0.7", "10.0.0.7"), ("fd00::7", "[fd00::7]")])
def test_replica_is_reached_by_proxies_that_use_grpc(replica, monkeypatch, node, host):
    replica.constants.RAY_SERVE_PROXY_USE_GRPC = True
    monkeypatch.setattr(sys.modules["ray"].util, "get_node_ip_address", lambda: node)
    server = Server()
    stay_local()
    replica.module.add_port_to_grpc_server(server, "[::]:0")
    assert server.opened == [f"{host}:0"]


def test_other_processes_are_left_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "ray.serve._private.replica", raising=False)
    stay_local()
