"""When a job takes the cluster that it joined for lost: its head is gone for longer than a moment, or its own node is dead."""

from __future__ import annotations

import subprocess
import sys

import pytest
import ray

from kray.cluster import lost_ray
from kray.cluster.lost_ray import GCS_AWAY_S, RayLoss
from kray.cluster.process_identity import identity, kill, this_process


@pytest.fixture
def joined(monkeypatch):
    """Return a joined cluster's RayLoss, and a dict that says whether its GCS answers, which nodes live, and the time."""
    there = {"answers": True, "nodes": {"mine": True, "other": True}, "now": 100.0}
    loss = object.__new__(RayLoss)
    loss._address, loss._node_id, loss._answered_at, loss.local = "10.0.0.1:6379", "mine", 100.0, False
    loss._raylet = this_process()
    monkeypatch.setattr(lost_ray, "connected", lambda: True)
    monkeypatch.setattr(lost_ray, "answers", lambda address, seconds: there["answers"])
    monkeypatch.setattr(lost_ray.time, "monotonic", lambda: there["now"])
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": n, "Alive": up} for n, up in there["nodes"].items()])
    return loss, there


def test_a_head_that_is_gone_is_reported_after_a_while(joined):
    loss, there = joined
    assert loss.why() == ""
    there.update(answers=False, now=100.0 + GCS_AWAY_S - 1)
    assert loss.why() == ""
    there["now"] += 2
    assert loss.why() == f"its GCS at 10.0.0.1:6379 has not answered for {GCS_AWAY_S + 1:.0f} s"
    # A job must end within a minute, and Ray ends its process after one.
    assert GCS_AWAY_S < 50


def test_a_head_that_restarts_is_not_lost(joined):
    loss, there = joined
    for _ in range(5):
        there.update(answers=False, now=there["now"] + GCS_AWAY_S - 5)
        assert loss.why() == ""
        there.update(answers=True, now=there["now"] + 1)
        assert loss.why() == ""


def test_only_the_death_of_the_own_node_is_a_loss(joined):
    loss, there = joined
    there["nodes"]["other"] = False
    assert loss.why() == ""
    there["nodes"]["mine"] = False
    assert loss.why() == "the node that this job runs on is dead, by its GCS"


def test_the_end_of_the_own_raylet_is_a_loss_before_the_head_knows_of_it(joined):
    loss, _ = joined
    raylet = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        loss._raylet = identity(raylet.pid)
        assert loss.why() == loss.node_ended() == ""
        kill(identity(raylet.pid) | {"started": 1})
        assert raylet.poll() is None, "another process with this pid was killed"
        kill(loss._raylet)
        assert raylet.wait(20) == -9
        assert loss.why() == loss.node_ended() == "the raylet of its node has ended"
    finally:
        raylet.kill()
        raylet.wait(20)
    # Where it cannot be seen from here, only the head tells.
    loss._raylet = {}
    assert loss.why() == ""
