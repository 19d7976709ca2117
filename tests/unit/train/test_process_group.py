"""Ranks use the network interface that leads to rank 0's node, listen nowhere else, and name what keeps them from their GPU."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.distributed as dist
from listening_sockets import open_to_others

from kray.cluster import gpus
from kray.errors import ConfigError
from kray.ports import free_port
from kray.train import process_group
from kray.train.process_group import _listening, interface_to, interface_variables, join_process_group, rank_device

LOOPBACK = next(
    name for name, found in psutil.net_if_addrs().items() if any(address.address == "127.0.0.1" for address in found)
)


@pytest.fixture
def no_interface(monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        # Set first, so that it is restored to its absence.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_store_of_ranks_listens_at_its_address():
    port, own = free_port(), [os.getpid()]
    before = open_to_others(own)
    options = _listening("127.0.0.1", port)
    assert set(options) == {"master_listen_fd"}
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=True, wait_for_workers=False, **options)
    other = dist.TCPStore("127.0.0.1", port, 2, is_master=False, wait_for_workers=False)
    other.set("key", "value")
    assert store.get("key") == b"value"
    assert open_to_others(own) == before
    del other, store
    # What torch would do by itself.
    store = dist.TCPStore("127.0.0.1", port := free_port(), 1, is_master=True, wait_for_workers=False)
    assert len(open_to_others(own)) == len(before) + 1
    del store


def test_address_of_another_machine_is_left_to_torch():
    # Of a range for documentation, which no machine has.
    assert _listening("192.0.2.1", free_port()) == {}


def test_the_loopback_leads_to_the_loopback():
    assert interface_to("127.0.0.1", 6379) == LOOPBACK


def test_the_interface_is_that_of_the_address_by_which_rank_0_is_reached(monkeypatch):
    """On a machine with several, as nodes of a cluster have them: docker's bridge, an interface in the cluster's network."""
    addresses = {"lo": ["127.0.0.1"], "docker0": ["172.17.0.1"], "eth1": ["10.0.0.7", "fe80::1%eth1"]}

    class Probe:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def connect(self, target):
            self.own = {"10.0.0.1": "10.0.0.7", "fe80::9": "fe80::1"}[target[0]]

        def getsockname(self):
            return (self.own, 40000)

    pretended = {name: [SimpleNamespace(address=each) for each in found] for name, found in addresses.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: pretended)
    monkeypatch.setattr(process_group.socket, "socket", Probe)
    assert interface_to("10.0.0.1", 6379) == "eth1"
    assert interface_to("fe80::9", 6379) == "eth1"


def test_an_address_that_is_not_reached_decides_nothing(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror

    monkeypatch.setattr(process_group.socket, "getaddrinfo", unknown)
    assert interface_to("nowhere", 1) == ""
    assert interface_variables("") == {}


def test_nccl_takes_the_whole_name():
    assert interface_variables("eth1") == {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "=eth1"}


@pytest.mark.parametrize("given", ["", LOOPBACK])
def test_joining_sets_the_interface_unless_it_is_given(monkeypatch, no_interface, given):
    joined = []
    monkeypatch.setattr(process_group.dist, "TCPStore", lambda *_, **__: None)
    monkeypatch.setattr(process_group.dist, "init_process_group", lambda backend, **_: joined.append(backend))
    if given:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", f"{given}-given")
    join_process_group(1, 2, "127.0.0.1", 1, torch.device("cuda"), 1)
    assert os.environ["GLOO_SOCKET_IFNAME"] == (f"{given}-given" if given else LOOPBACK)
    assert os.environ["NCCL_SOCKET_IFNAME"] == f"={LOOPBACK}"
    assert joined == ["cpu:gloo,cuda:nccl"]


def test_a_rank_alone_listens_on_the_loopback(monkeypatch, no_interface):
    monkeypatch.setattr(process_group.dist, "init_process_group", lambda *_, **__: None)
    join_process_group(0, 1, "", 0, torch.device("cpu"), 1)
    assert os.environ["GLOO_SOCKET_IFNAME"] == LOOPBACK


def test_a_rank_names_driver_and_cuda(monkeypatch, tmp_path):
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat\n")
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"train\.gpus_per_rank: .*CUDA 13\.0, which needs .* 580 .* is 535\.104\.05"):
        rank_device("cuda")
    assert rank_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert rank_device("cuda") == torch.device("cuda", 0)
