"""Learner ranks listen where their peers reach them, and nowhere else."""

from __future__ import annotations

import os
import socket

import psutil
import torch.distributed as dist
from listening_sockets import open_to_others

from kray.train.process_group import _listening, interface_towards


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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


def test_interface_is_that_of_the_address():
    assert interface_towards("127.0.0.1") == "lo"
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family == socket.AF_INET:
                # Linux reaches its own addresses from themselves.
                assert interface_towards(address.address) == name
    assert interface_towards("no address") == ""
