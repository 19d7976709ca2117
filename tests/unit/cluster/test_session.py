"""Which Ray this process belongs to: the one that it chose, or none."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kray.cluster.session import _own_sessions, _same_handlers

ROOT = Path(__file__).parents[3]
# Every call of Ray that connects by itself where nothing forbids it.
CALLS = """
import os, sys
os.environ.pop("RAY_ENABLE_AUTO_CONNECT", None)
if sys.argv[1] == "ray first":
    import ray
from kray.cluster.session import connected, never_auto_connect
assert not connected()
never_auto_connect()
import ray
started = []
ray.init = lambda *given, **more: started.append((given, more))
ray.worker.init = ray.init
class Actor: pass
for call in (
    lambda: ray.kill(Actor()), lambda: ray.get(Actor()), lambda: ray.put(1), lambda: ray.wait([Actor()]),
    lambda: ray.cancel(Actor()), lambda: ray.get_actor("x"), lambda: ray.nodes(), lambda: ray.cluster_resources(),
    lambda: ray.available_resources(), lambda: ray.util.list_named_actors(), lambda: ray.util.placement_group_table(),
    lambda: ray.util.placement_group([{"CPU": 1}]), lambda: ray.remote(Actor).remote(), lambda: ray.remote(lambda: 1).remote(),
    lambda: ray.get_runtime_context().get_job_id(), lambda: ray.timeline(), lambda: ray.get_gpu_ids(),
):
    try:
        call()
    except Exception:
        pass
    assert not ray.is_initialized()
assert not connected()
print(started)
"""


@pytest.mark.parametrize("order", ["kray first", "ray first"])
def test_no_call_of_ray_connects_by_itself(order):
    """What ends a driver may be called after its Ray has gone, and another Ray may run on the machine."""
    done = subprocess.run(
        [sys.executable, "-c", CALLS, order],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "127.0.0.1:1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_every_job_forbids_ray_to_connect_by_itself():
    jobs = [
        job for job in (ROOT / "jobs").glob("*.py") if not job.name.startswith(("bench_", "reference", "model_table"))
    ]
    assert len(jobs) == 8
    assert [job.name for job in jobs if "guarded(main)" not in job.read_text()] == []


def test_a_ray_is_joined_or_started_in_few_places_and_always_the_one_that_was_chosen():
    found = {}
    for file in sorted((ROOT / "kray").rglob("*.py")):
        for call in re.findall(r"\bray\.init\(([^)]*)", file.read_text()):
            found.setdefault(str(file.relative_to(ROOT)), []).append("address=" in call)
    # The first of session.py joins the cluster of RAY_ADDRESS, or of the Ray job that this process is.
    assert found.pop("kray/cluster/session.py") == [False, True]
    assert set(found) == {
        "kray/bench/colocation.py",
        "kray/bench/pool.py",
        "kray/bench/weight_sync.py",
        "kray/faults/cluster.py",
        "kray/monitor/client.py",
    }
    assert all(all(each) for each in found.values())


def test_processes_of_ray_lead_sessions_of_their_own():
    from ray._private import services

    with _own_sessions():
        process = services.ConsolePopen(["sleep", "60"])
    after = services.ConsolePopen(["sleep", "60"])
    try:
        assert os.getsid(process.pid) == process.pid
        assert os.getsid(after.pid) == os.getsid(0)
    finally:
        for each in (process, after):
            each.kill()
            each.wait()


def test_handlers_outlive_what_replaces_them():
    before = signal.getsignal(signal.SIGTERM)
    with _same_handlers():
        signal.signal(signal.SIGTERM, lambda *_: None)
    assert signal.getsignal(signal.SIGTERM) is before
