"""What a real Ray says of its jobs, and what is left of one that was started here."""

from __future__ import annotations

import subprocess
import sys

from kray.cluster.lost_ray import RayLoss, has_ended, is_gone, local_processes, this_job

OTHER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get_runtime_context().get_job_id(), flush=True)
sys.stdin.readline()
"""


def test_ray_says_whether_a_job_goes_on(ray_local):
    job = this_job()
    assert not has_ended(job)
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, job["address"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    theirs = job | {"job": other.stdout.readline().strip()}
    assert theirs["job"] != job["job"]
    assert not has_ended(theirs)
    other.communicate("\n", timeout=60)
    assert has_ended(theirs)
    # Asked from another machine, another Ray may listen there.
    assert not is_gone(theirs)
    assert not has_ended({"address": "127.0.0.1:1", "job": "01"})
    assert not is_gone({})


def test_a_ray_that_was_started_here_is_watched_by_its_processes(ray_local):
    assert {"raylet", "gcs_server"} <= {kind for kind, _ in local_processes()}
    loss = RayLoss()
    assert loss.local
    assert loss.why() == ""
