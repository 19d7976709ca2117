"""A process group of kray's own from rank 0 of the learner to one receiver a node; no other group is touched.

The sender (`Root`) hosts a TCPStore, by which the members of a group are agreed on; the group itself is gloo, in main memory.
Groups have generations: the members of a new one are those of whom the store has heard since the last one broke.

- `Root.broadcast` returns when every member of the group has all bytes. A member that dies or does not answer is left out of
  the next generation, which gets the same bytes again.
- A member that was left out, or whose root is gone, raises TransferBroken; it does not wait.
- Every wait has a deadline.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from kray.weight_sync.channel import TransferBroken

# Seconds between two looks at the store.
POLL_S = 0.002
# Seconds for which the root waits for news of members after a group broke. Longer than their connections take to notice.
REGROUP_S = 5.0
# Seconds to connect the members of a group.
CONNECT_S = 20.0
# New groups in one transfer after which all members are left out.
REGROUPS = 4


class Membership:
    """One end of the groups: the current group, and the store that the members meet at."""

    def __init__(self, store: dist.TCPStore, address: str):
        """Belong to no group yet.

        Args:
            store: The root's.
            address: Of this node.
        """
        self.store, self.address = store, address
        self.generation = 0
        self.group: Any = None

    def has(self, key: str) -> bool:
        """Return whether the store has a key; TransferBroken when it is gone."""
        try:
            return bool(self.store.check([key]))
        except RuntimeError as error:
            raise TransferBroken(f"weights: the sender's store was lost: {str(error).splitlines()[0]}") from error

    def wait_for(self, keys: Sequence[str], limit_s: float, what: str) -> str:
        """Wait until the store has one of these keys and return it."""
        deadline = time.monotonic() + limit_s
        while True:
            for key in keys:
                if self.has(key):
                    return key
            if time.monotonic() > deadline:
                raise TransferBroken(f"weights: {what} did not come within {limit_s:.3g} s")
            time.sleep(POLL_S)

    def connect(self, rank: int, size: int) -> None:
        """Connect with the other members of the current generation."""
        store = dist.PrefixStore(f"group-{self.generation}", self.store)
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        # By itself gloo takes the address that this host's name stands for.
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=self.address)]
        options._timeout = timedelta(seconds=CONNECT_S)
        self.group = dist.ProcessGroupGloo(store, rank, size, options)

    def share(self, payload: np.ndarray, limit_s: float) -> None:
        """Copy the root's bytes to every member. A collective of the group."""
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        limit = timedelta(seconds=limit_s)
        options.timeout = limit
        self.group.broadcast([torch.from_numpy(payload)], options).wait(limit + timedelta(seconds=CONNECT_S))

    def leave(self) -> None:
        """Close the connections of the current group, so that the others notice."""
        self.group = None


class Root(Membership):
    """The sender's end.

    Attributes:
        members: Names of the members of the current group.
        lost: Names of those that were left out since the last `form`.
    """

    def __init__(self, address: str, limit_s: float):
        """Listen for members.

        Args:
            address: Of this node, which the members reach.
            limit_s: Longest wait for a broadcast to one group, in seconds.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening = socket.create_server((address, 0), family=family)
        self.port = listening.getsockname()[1]
        timeout = timedelta(seconds=limit_s)
        store = dist.TCPStore(
            address,
            self.port,
            None,
            is_master=True,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
        super().__init__(store, address)
        self.limit_s = limit_s
        self.members: list[str] = []
        self.lost: list[str] = []
        self._regroups = 0

    def form(self, transfer: str, names: Sequence[str]) -> None:
        """Make a group of these members, who must call `Member.join`; keeps the current one where it has the same.

        A member that does not connect is left out.
        """
        self.lost, self._regroups = [], 0
        kept = self.group is not None and self.members == list(names)
        self.store.set(f"transfer/{transfer}", str(self.generation + (not kept)))
        if not kept:
            self.leave()
            self._connect_any(list(names))

    def broadcast(self, label: str, payload: np.ndarray | None) -> None:
        """Send bytes to all members; returns when they have them. Members that fail are left out.

        Args:
            label: Names what is sent, once in the life of the root.
            payload: (nbytes,) uint8; None: only the label.
        """
        while self.members:
            key = f"{self.generation}/{label}"
            try:
                self.store.set(key, "")
                if payload is not None:
                    self.share(payload, self.limit_s)
                self._wait_received(f"{key}/received")
                for done in (key, f"{key}/received"):
                    self.store.delete_key(done)
                return
            except (RuntimeError, TransferBroken):
                self.regroup()

    def _wait_received(self, key: str) -> None:
        deadline = time.monotonic() + self.limit_s
        while self.store.add(key, 0) < len(self.members):
            if self.has(f"{self.generation}/trouble"):
                raise TransferBroken("weights: a member's connection broke")
            if time.monotonic() > deadline:
                raise TransferBroken(f"weights: not all members had the bytes within {self.limit_s:.3g} s")
            time.sleep(POLL_S)

    def close(self) -> None:
        """Close the group; members that wait for something raise TransferBroken."""
        self.store.set(f"{self.generation}/broken", "")
        self.leave()
        self._connect_any([])

    def regroup(self) -> None:
        """Make a group of those members that report within REGROUP_S; of none after REGROUPS groups."""
        self.store.set(f"{self.generation}/broken", "")
        self.leave()
        self._regroups += 1
        deadline = time.monotonic() + REGROUP_S
        waiting = list(self.members)
        while waiting and time.monotonic() < deadline and self._regroups <= REGROUPS:
            waiting = [name for name in waiting if not self.has(f"{self.generation}/alive/{name}")]
            time.sleep(POLL_S)
        self.lost += waiting
        self._connect_any([name for name in self.members if name not in waiting])

    def _connect_any(self, names: list[str]) -> None:
        """Connect with as many of these as can be; the next generation after each failure."""
        self.members = names
        self.generation += 1
        self.store.set(f"members/{self.generation}", json.dumps(names))
        if not names:
            return
        try:
            self.connect(0, len(names) + 1)
        except RuntimeError:
            self.regroup()


class Member(Membership):
    """A receiver's end."""

    def __init__(self, name: str, root: tuple[str, int], address: str, limit_s: float):
        """Find the root.

        Args:
            name: Of this member, in the root's list.
            root: Address and port of the root.
            address: Of this node.
            limit_s: Longest wait for the root, in seconds.
        """
        timeout = timedelta(seconds=limit_s)
        store = dist.TCPStore(root[0], root[1], None, is_master=False, timeout=timeout, wait_for_workers=False)
        super().__init__(store, address)
        self.name, self.limit_s = name, limit_s
        # What was received last, and in which generation: a new one may get it again.
        self._last: tuple[str, np.ndarray, int] | None = None

    def join(self, transfer: str) -> None:
        """Join the group of a transfer, or keep the current one where it is the same.

        Raises:
            TransferBroken: The root does not ask for this member in time.
        """
        self._last = None
        key = self.wait_for([f"transfer/{transfer}"], 2 * self.limit_s, "the transfer")
        generation = int(self.store.get(key))
        if self.group is None or self.generation < generation:
            self.leave()
            self.generation = max(self.generation, generation)
            self._connect_listed()

    def _connect_listed(self) -> None:
        """Connect with the members of this generation, or of the first later one that holds."""
        while True:
            self.wait_for([f"members/{self.generation}"], 2 * self.limit_s, "the list of members")
            names = json.loads(self.store.get(f"members/{self.generation}"))
            if self.name not in names:
                raise TransferBroken("weights: this node was left out of the group")
            try:
                self.connect(1 + names.index(self.name), len(names) + 1)
                return
            except RuntimeError:
                self._report()

    def receive(self, label: str, payload: Callable[[], np.ndarray] | None) -> None:
        """Receive what the root broadcasts under this label, in as many groups as it takes.

        Args:
            label: Names what is received.
            payload: Returns the (nbytes,) bytes to fill, and is called when the root is about to send; None: only the label.

        Raises:
            TransferBroken: It does not come, or this member was left out.
        """
        while True:
            own, broken, again = f"{self.generation}/{label}", f"{self.generation}/broken", ""
            if self._last is not None and self._last[2] != self.generation:
                again = f"{self.generation}/{self._last[0]}"
            try:
                key = self.wait_for(list(filter(None, [own, broken, again])), 2 * self.limit_s, label)
                if key == own:
                    target = payload() if payload is not None else None
                    self._take(own, target)
                    if target is not None:
                        self._last = (label, target, self.generation)
                    return
                if key == again:
                    assert self._last is not None
                    self._take(again, self._last[1])
                    self._last = (*self._last[:2], self.generation)
                    continue
            except RuntimeError:
                with suppress(RuntimeError):
                    self.store.set(f"{self.generation}/trouble", "")
            self._report()
            self._connect_listed()

    def _take(self, key: str, target: np.ndarray | None) -> None:
        if target is not None:
            self.share(target, self.limit_s)
        self.store.add(f"{key}/received", 1)

    def _report(self) -> None:
        """Report for the next generation."""
        self.leave()
        try:
            self.store.set(f"{self.generation}/alive/{self.name}", "")
        except RuntimeError as error:
            raise TransferBroken("weights: the sender's store was lost") from error
        self.generation += 1
