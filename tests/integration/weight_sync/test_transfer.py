"""Weights reach the engines of several nodes by buckets, whoever dies or hangs on the way; with real processes."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from kray.bench.transfer_processes import LOOPBACK, Engine, Node, Process
from kray.weight_sync import group
from kray.weight_sync.buckets import plan_buckets
from kray.weight_sync.flat_weights import FlatWeights
from kray.weight_sync.transfer import Sender

# Seconds for a bucket: where nothing hangs no test waits for it, and where something does it is what is waited.
LIMIT_S, SHORT_S = 40.0, 5.0
BUCKET = 40_000


def make_state(seed: int) -> list[tuple[str, torch.Tensor]]:
    rng = np.random.default_rng(seed)
    # The same in every version, as a policy's are.
    sizes = np.random.default_rng(0).integers(1, 8000, 24)
    return [
        (f"layers.{i}.weight", torch.from_numpy(rng.normal(size=size).astype(np.float32)))
        for i, size in enumerate(sizes)
    ]


class Cluster:
    """A sender in this process; engines on its own node and on further ones, each in a process of its own."""

    def __init__(self, nodes: int, engines: int, limit_s: float = LIMIT_S):
        """Engines are numbered node after node, this one's first."""
        self.limit_s = limit_s
        self.sender = Sender(limit_s)
        self.root = self.sender.listen(LOOPBACK)
        self.nodes: dict[str, Process] = {}
        self.made = 0
        self.engines = [[Process(Engine) for _ in range(engines)] for _ in range(1 + nodes)]
        for _ in range(nodes):
            self.add_node()
        self.version = 0

    def add_node(self) -> None:
        self.made += 1
        name = f"node-{self.made}"
        self.nodes[name] = Process(Node, name, self.root, self.limit_s)

    def transfer(
        self, faults: dict[int, tuple[str, int]] | None = None, node_faults: dict[str, tuple[str, int]] | None = None
    ):
        """Send new weights; return the sender's report, the expected checksum, and each engine's and node's."""
        self.version += 1
        faults, node_faults = faults or {}, node_faults or {}
        state = make_state(self.version)
        plan = plan_buckets([tensor.nbytes for _, tensor in state], BUCKET)
        feeds = [self.sender.channel.open(len(self.engines[0]), plan.capacity)]
        feeds += [node.call("open", len(self.engines[1]), plan.capacity) for node in self.nodes.values()]
        engines = [engine for of_node in self.engines for engine in of_node]
        for engine, feed in zip(engines, [feed for of_node in feeds for feed in of_node], strict=True):
            engine.call("join", feed)
        for i, engine in enumerate(engines):
            engine.begin("read", *faults.get(i, ()))
        label = f"v{self.version}"
        for name, node in self.nodes.items():
            node.begin("receive", label, *node_faults.get(name, ()))
        sent = self.sender.send(label, list(self.nodes), plan, lambda start, stop: state[start:stop])
        assert plan.count > 8
        hung = {i for i, (fault, _) in faults.items() if fault == "hang"}
        hung_nodes = {name for name, (fault, _) in node_faults.items() if fault == "hang"}
        read = [None if i in hung else engine.result() for i, engine in enumerate(engines)]
        return (
            sent,
            FlatWeights.pack(state).checksum,
            read,
            {name: None if name in hung_nodes else node.result() for name, node in self.nodes.items()},
        )

    def remove(self, node: str) -> None:
        """Drop a node that has failed, with its engines."""
        index = list(self.nodes).index(node)
        self.nodes.pop(node).close()
        for engine in self.engines.pop(1 + index):
            engine.close()

    def close(self) -> None:
        for process in [*self.nodes.values(), *(engine for of_node in self.engines for engine in of_node)]:
            process.close()


@pytest.fixture
def cluster():
    made: list[Cluster] = []

    def make(*arguments) -> Cluster:
        made.append(Cluster(*arguments))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_every_engine_gets_the_same_bits_version_after_version(cluster):
    two = cluster(2, 2)
    for _ in range(3):
        sent, expected, read, nodes = two.transfer()
        assert sent.checksum == expected
        assert not sent.dropped
        assert not sent.lost
        assert [found["checksum"] for found in read] == [expected] * 6
        assert {engine.call("digest") for of_node in two.engines for engine in of_node} == {expected}
        assert list(nodes.values()) == [(), ()]
    assert two.sender.root.generation == 1  # one group for all three
    two.add_node()
    two.engines.append([Process(Engine) for _ in range(2)])
    sent, expected, read, _ = two.transfer()
    assert [found["checksum"] for found in read] == [expected] * 8
    assert two.sender.root.generation == 2


@pytest.mark.parametrize(("fault", "limit_s"), [("kill", LIMIT_S), ("hang", SHORT_S)])
def test_an_engine_that_fails_in_the_middle_costs_that_engine_only(cluster, fault, limit_s):
    """One on the learner's node, one on another."""
    two = cluster(1, 2, limit_s)
    started = time.monotonic()
    sent, expected, read, nodes = two.transfer(faults={0: (fault, 3), 3: (fault, 5)})
    took_s = time.monotonic() - started
    assert sent.checksum == expected
    assert sent.dropped == (0,)
    assert not sent.lost
    assert nodes == {"node-1": (1,)}
    assert read[0] is None
    assert read[3] is None
    assert [read[i]["checksum"] for i in (1, 2)] == [expected] * 2
    assert took_s < LIMIT_S / 2
    assert two.sender.root.generation == 1


@pytest.mark.parametrize(("fault", "limit_s"), [("kill", LIMIT_S), ("hang", SHORT_S)])
def test_a_receiver_that_fails_in_the_middle_costs_its_node_only(cluster, fault, limit_s, monkeypatch):
    monkeypatch.setattr(group, "REGROUP_S", 2.0)
    three = cluster(3, 1, limit_s)
    started = time.monotonic()
    sent, expected, read, _ = three.transfer(node_faults={"node-2": (fault, 4)})
    took_s = time.monotonic() - started
    assert sent.checksum == expected
    assert sent.lost == ("node-2",)
    assert [read[i]["checksum"] for i in (0, 1, 3)] == [expected] * 3
    assert "the sender was lost before bucket" in read[2]["broken"] or "did not come within" in read[2]["broken"]
    assert took_s < LIMIT_S
    three.remove("node-2")
    three.add_node()
    three.engines.append([Process(Engine)])
    sent, expected, read, _ = three.transfer()
    assert [found["checksum"] for found in read] == [expected] * 4


def test_a_corrupted_bucket_is_noticed_by_the_engines_that_get_it(cluster):
    two = cluster(2, 1)
    sent, expected, read, _ = two.transfer(node_faults={"node-1": ("corrupt", 5)})
    assert sent.checksum == expected
    assert read[0]["checksum"] == read[2]["checksum"] == expected
    assert "weight arrived with checksum" in read[1]["broken"]


def test_engines_notice_at_once_that_the_sender_is_gone(cluster):
    one = cluster(1, 1)
    state = make_state(0)
    plan = plan_buckets([tensor.nbytes for _, tensor in state], BUCKET)
    feeds = [one.sender.channel.open(1, plan.capacity), one.nodes["node-1"].call("open", 1, plan.capacity)]
    for of_node, feed in zip(one.engines, feeds, strict=True):
        of_node[0].call("join", feed[0])
        of_node[0].begin("read")
    one.nodes["node-1"].begin("receive", "x")
    failed: list[Exception] = []

    def take(start: int, stop: int):
        if start > 5:
            raise RuntimeError("the learner failed")
        return state[start:stop]

    def send() -> None:
        try:
            one.sender.send("x", ["node-1"], plan, take)
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    started = time.monotonic()
    assert "given up" in one.engines[0][0].result()["broken"]
    assert "given up" in one.engines[1][0].result()["broken"]
    assert time.monotonic() - started < LIMIT_S / 2
    thread.join(10)
    assert failed
