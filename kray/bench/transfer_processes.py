"""Processes that take part in a transfer of weights as nodes and engines do, without Ray and vLLM behind them.

For measurements and tests: a node is a real receiver; an engine joins, verifies every tensor and copies it.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kray.weight_sync.buckets import BucketPlan, plan_buckets
from kray.weight_sync.channel import ChannelReader, Feed, TransferBroken
from kray.weight_sync.flat_weights import FlatWeights
from kray.weight_sync.transfer import Receiver, Sender, Sent

LOOPBACK = "127.0.0.1"
# Children come from a process that has loaded torch and made no thread.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["kray.weight_sync.transfer"])


class Node:
    """A receiver."""

    def __init__(self, name: str, root: tuple[str, int], limit_s: float):
        self.receiver = Receiver(name, root, LOOPBACK, limit_s)

    def open(self, readers: int, capacity: int) -> list[Feed]:
        """Begin a transfer."""
        return self.receiver.channel.open(readers, capacity)

    def receive(self, transfer: str, fault: str = "", bucket: int = 0) -> tuple[int, ...] | str:
        """Receive a transfer; a fault ("kill", "hang" or "corrupt") happens at a bucket."""
        if fault:
            self._break(fault, bucket)
        try:
            return self.receiver.receive(transfer)
        except TransferBroken as error:
            return str(error)

    def _break(self, fault: str, bucket: int) -> None:
        writer = self.receiver.channel.writer
        assert writer is not None
        publish, payload = writer.publish, writer.payload

        def corrupt(header: Any) -> None:
            if header.index == bucket:
                payload(bucket)[0] ^= 1
            publish(header)

        def stop(index: int) -> Any:
            if index == bucket:
                _end(fault)
            return payload(index)

        if fault == "corrupt":
            writer.publish = corrupt  # type: ignore[method-assign]
        else:
            writer.payload = stop  # type: ignore[method-assign]


class Engine:
    """A reader."""

    def __init__(self) -> None:
        self.reader: ChannelReader | None = None
        self.own: dict[str, torch.Tensor] = {}

    def join(self, feed: Feed) -> None:
        """Join a transfer."""
        if self.reader is not None:
            self.reader.close()
        self.reader = ChannelReader(feed)

    def read(self, fault: str = "", bucket: int = 0) -> dict[str, Any]:
        """Copy all tensors into memory of this process; a fault ("kill" or "hang") happens at a bucket.

        Returns:
            checksum of what was read, seconds of waiting, and of verifying and copying; or broken, why it was not.
        """
        assert self.reader is not None
        manifest, waited_s, copied_s, index, count = [], 0.0, 0.0, 0, 1
        try:
            while index < count:
                started = time.monotonic()
                found, count = self.reader.bucket(index)
                waited_s += time.monotonic() - started
                if fault and index == bucket:
                    _end(fault)
                started = time.monotonic()
                for name, tensor in found:
                    if name not in self.own:
                        self.own[name] = torch.empty_like(tensor)
                    self.own[name].copy_(tensor)
                copied_s += time.monotonic() - started
                self.reader.release(index)
                manifest += found.manifest
                index += 1
        except Exception as error:
            return {"broken": f"{type(error).__name__}: {error}"}
        return {"checksum": FlatWeights(manifest, []).checksum, "wait_s": waited_s, "copy_s": copied_s}

    def reload_s(self, at_a_time: int) -> float:
        """Return the seconds in which all tensors that were read are copied again, from so many bytes of shared memory."""
        shared = torch.frombuffer(mmap.mmap(-1, at_a_time), dtype=torch.uint8)
        shared.fill_(1)
        started, place = time.monotonic(), 0
        for tensor in self.own.values():
            place = place if place + tensor.nbytes <= at_a_time else 0
            tensor.copy_(shared[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
            place += tensor.nbytes
        return time.monotonic() - started

    def digest(self) -> str:
        """Return the checksum of the tensors in this process's own memory."""
        return FlatWeights.pack(list(self.own.items())).checksum


class Learner:
    """The sender, with the weights of a policy that never changes: float32, sent in bfloat16."""

    def __init__(self, parameters: int, limit_s: float):
        """Fill the weights: matrices of 4 million parameters."""
        self.sender = Sender(limit_s)
        size = 2**22
        numbers = torch.randn(size, dtype=torch.float32).view(2048, 2048)
        self.state = [(f"layers.{i}.weight", numbers + i / 8) for i in range(max(1, round(parameters / size)))]
        Path("/proc/self/clear_refs").write_text("5")
        self.resident = resident_bytes("VmRSS")

    def port(self) -> int:
        """Return the port of the store."""
        return self.sender.listen(LOOPBACK)[1]

    def plan(self, bucket_bytes: int) -> BucketPlan:
        """Divide the weights."""
        return plan_buckets([2 * tensor.numel() for _, tensor in self.state], bucket_bytes)

    def open(self, readers: int, capacity: int) -> list[Feed]:
        """Begin a transfer."""
        return self.sender.channel.open(readers, capacity)

    def send(self, transfer: str, receivers: list[str], bucket_bytes: int) -> tuple[Sent, float]:
        """Send the weights; return the report and the seconds."""
        started = time.monotonic()
        plan = self.plan(bucket_bytes)
        sent = self.sender.send(transfer, receivers, plan, lambda start, stop: self.state[start:stop], torch.bfloat16)
        return sent, time.monotonic() - started

    def copy_s(self, nbytes: int, at_a_time: int) -> float:
        """Return the seconds of one copy of so many bytes into shared memory, so many at a time."""
        shared = np.frombuffer(mmap.mmap(-1, at_a_time), dtype=np.uint8)
        shared[:] = 1
        started, left = time.monotonic(), nbytes
        for _, tensor in self.state:
            part = tensor.view(-1).view(torch.uint8).numpy()[: min(left, at_a_time)]
            place = (nbytes - left) % at_a_time if (nbytes - left) % at_a_time + len(part) <= at_a_time else 0
            shared[place : place + len(part)] = part
            left -= len(part)
        assert left <= 0
        return time.monotonic() - started

    def peak_bytes(self) -> int:
        """Return by how many bytes the process has grown beside its weights at most, since they were filled."""
        return resident_bytes("VmHWM") - self.resident


def resident_bytes(name: str) -> int:
    """Return this process's memory in bytes.

    Args:
        name: VmRSS, now, or VmHWM, at most since it began or since the peak was forgotten.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _end(how: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)


def _serve(connection: Any, kind: type, arguments: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    served = kind(*arguments)
    while True:
        try:
            method, args = connection.recv()
        except EOFError:
            return
        connection.send(getattr(served, method)(*args))


class Process:
    """An object in a process of its own, called by name."""

    def __init__(self, kind: type, *arguments: Any):
        self._connection, other = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(other, kind, arguments), daemon=True)
        self.process.start()
        other.close()

    def begin(self, method: str, *arguments: Any) -> None:
        """Call a method; `result` returns what it returned."""
        self._connection.send((method, arguments))

    def result(self, limit_s: float = 60.0) -> Any:
        """Return the result of the last call; None when the process died."""
        if not self._connection.poll(limit_s):
            raise TimeoutError(f"no result within {limit_s:g} s")
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            return None

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and return its result."""
        self.begin(method, *arguments)
        return self.result()

    def close(self) -> None:
        """End the process, also a stopped one."""
        self.process.kill()
        self.process.join(10)
        self._connection.close()
