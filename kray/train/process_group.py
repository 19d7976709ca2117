"""The learner ranks' process group, and what ranks do together besides the model's own collectives.

The ranks listen only where their peers reach them: a single rank on the loopback interface, others at the address and on the
interface by which rank 0's node is reached. Left alone, torch's store would listen on all interfaces and gloo on that of the
machine's name. nccl is told the same interface as gloo.

Guarantee: where one rank fails, all ranks leave the call with the same error, so that none waits for a rank that gave up.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist

from kray.cluster.gpus import require_cuda
from kray.errors import KrayError

LOOPBACK = "127.0.0.1"


def rank_device(kind: str) -> torch.device:
    """Return the device of this rank.

    Args:
        kind: "cpu" or "cuda".

    Raises:
        ConfigError: torch can use no GPU here; names the versions of driver and CUDA.
    """
    if kind != "cuda":
        return torch.device("cpu")
    require_cuda("train.gpus_per_rank")
    return torch.device("cuda", torch.cuda.current_device())


def join_process_group(
    rank: int, world_size: int, master_addr: str, master_port: int, device: torch.device, timeout_s: float
) -> None:
    """Join the default process group; blocks until all ranks have joined.

    Args:
        rank: This process's rank.
        world_size: Number of ranks; a single one needs no address.
        master_addr: Address of rank 0's node, as Ray knows it. gloo and nccl use the interface that leads there, unless
            GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME say otherwise.
        master_port: Free port on that address.
        device: Device of the model; CUDA adds nccl.
        timeout_s: Limit in seconds for joining and for every collective.
    """
    timeout = timedelta(seconds=timeout_s)
    interface = interface_to(master_addr, master_port) if world_size > 1 else interface_to(LOOPBACK, 0)
    for name, value in interface_variables(interface).items():
        os.environ.setdefault(name, value)
    if world_size == 1:
        store: dist.Store = dist.HashStore()
    else:
        listening = {} if rank else _listening(master_addr, master_port)
        store = dist.TCPStore(master_addr, master_port, world_size, is_master=rank == 0, timeout=timeout, **listening)
    # gloo also on CUDA: checkpoints and the last sums of the metrics travel between the processes' main memory.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def interface_to(address: str, port: int) -> str:
    """Return the network interface by which this machine reaches an address, its own too; "" where that is not known.

    By itself gloo takes the address that this host's name resolves to, which on many machines is the loopback, where ranks on
    other nodes do not find it.

    Args:
        address: A name or an address.
        port: Any port; nothing is sent.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            own = probe.getsockname()[0]
    except OSError:
        return ""
    for name, addresses in psutil.net_if_addrs().items():
        # An IPv6 address may carry its interface's name.
        if any(found.address.partition("%")[0] == own.partition("%")[0] for found in addresses):
            return name
    return ""


def interface_variables(interface: str) -> dict[str, str]:
    """Return the environment variables that make gloo and nccl use an interface; none for "".

    nccl takes a name as the beginning of names, unless it follows an equals sign.
    """
    return {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"} if interface else {}


def _listening(address: str, port: int) -> dict[str, Any]:
    """Return the option of TCPStore that has it listen at this address, none where that is not this machine's own."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return {"master_listen_fd": socket.create_server((address, port), family=family).detach()}
    except OSError:
        # Behind a translation of addresses, for example.
        return {}


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return every rank's value, rank 0's first. A collective of `group` (default: the default group)."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def first_problem(problem: str, group: dist.ProcessGroup | None = None) -> str:
    """Return the first rank's problem that is not "", or "". A collective of `group`."""
    return next(filter(None, gather_objects(problem, group)), "")


def run_on_rank_0(write: Callable[[], Any]) -> None:
    """Run `write` on rank 0 while the others wait. A collective.

    Raises:
        KrayError: On all ranks, when `write` raised on rank 0.
    """
    error: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            write()
        except Exception as failure:
            error = [f"{type(failure).__name__}: {failure}"]
    dist.broadcast_object_list(error, src=0, device=torch.device("cpu"))
    if error[0]:
        raise KrayError(f"learner rank 0: {error[0]}")
