"""A training on a cluster of several nodes, each of which dies in its turn: engine's, learner's, the job's own, the head."""

from __future__ import annotations

import re
import time

import pytest
from node_cluster import NodeCluster, wait_until
from training_job import Job, saved_step

from kray.faults.compared import differences

# With a learning rate that falls towards the last step, the number of steps would matter.
STEADY = ("train.lr_schedule=constant",)
ENDS_S = 60.0


@pytest.fixture
def cluster(tmp_path):
    """Start nodes: one for the job and its driver, three of one CPU for engine and learner."""
    (tmp_path / "nodes").mkdir()
    nodes = NodeCluster(tmp_path / "nodes", {"job": 0, "one": 1, "two": 1, "three": 1})
    yield nodes
    nodes.close()


@pytest.fixture
def start(warm_policy, tmp_path):
    """Start a job that joins the cluster on a node, or one with a Ray of its own; what is left of it is killed."""
    jobs = []

    def start(name: str, *overrides: str, env: dict[str, str] | None = None) -> Job:
        common = (f"model.path={warm_policy}", f"run.dir={tmp_path}/runs", f"run.name={name}", *STEADY)
        script = "tests/joining_job.py" if env else "jobs/train.py"
        jobs.append(Job(*common, *overrides, env=env, script=script))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


def steps_done(job: Job) -> int:
    return max(map(int, re.findall(r"^step +(\d+)/", job.text, re.M)), default=0)


def some_steps(job: Job, more: int = 4) -> None:
    """Wait until the job has done some more steps."""
    before = steps_done(job)

    def reached() -> bool:
        assert job.process.poll() is None, job.text
        return steps_done(job) >= before + more

    wait_until(reached, f"{more} steps after {before}:\n{job.text}", 240.0)


def ends_with_one_message(job: Job, why: str) -> int:
    """Wait for the end of a job whose Ray was just lost; return the step that it names as saved."""
    began = time.monotonic()
    assert job.end(ENDS_S) == 1, job.text
    assert time.monotonic() - began < ENDS_S
    assert len(re.findall(r"^error: ", job.text, re.M)) == 1
    assert re.search(rf"^error: Ray was lost, and the driver of this run with it: {why}", job.text, re.M), job.text
    assert "starting another" not in job.text
    assert "Traceback" not in job.text
    saved = int(re.search(r"saved +step (\d+) of", job.text)[1])
    assert saved_step(job) == saved
    return saved


@pytest.mark.timeout(1200)
def test_a_run_survives_its_nodes_or_says_how_to_resume(cluster, start, tmp_path):
    job = start("hit", "run.steps=100000", env=cluster.joined_from("job"))
    job.wait_for(r"step +3/")
    assert cluster.place_of("Driver") == "job"

    # The node of the engine: another engine on the one that is free.
    lost = cluster.place_of("Engine")
    cluster.kill(lost)
    job.wait_for(r"pool: lost \S*engine", 90)
    wait_until(lambda: cluster.find("Engine"), f"there is another engine:\n{job.text}")
    assert cluster.place_of("Engine") != lost
    some_steps(job)

    # The node of the learner, with one that is started in its place: back to the newest checkpoint.
    cluster.add("four", 1)
    cluster.kill(cluster.place_of("Learner"))
    job.wait_for(r"lost the learner; restarting from step \d+", 90)
    some_steps(job)
    assert job.process.poll() is None

    # The node of job and driver: the job ends, and what it had elsewhere, too.
    cluster.kill("job")
    saved = ends_with_one_message(job, "the raylet of its node has ended")
    wait_until(lambda: not cluster.left(), f"nothing of the run is left, but {cluster.left()}")

    # From another node the same run goes on, until the whole head dies.
    cluster.add("other", 0)
    again = start("hit", "run.steps=100000", "resume=auto", env=cluster.joined_from("other"))
    again.wait_for(rf"resumed after step {saved}\b")
    some_steps(again)
    cluster.kill("head")
    saved = ends_with_one_message(again, r"its GCS at \S+ has not answered for 4\d s$")
    assert not cluster.find("Driver")
    # Raylets give up their head after a minute.
    wait_until(lambda: not cluster.left(), f"nothing of the run is left, but {cluster.left()}", 60.0)

    # Elsewhere it ends as one that nothing happened to.
    steps = f"run.steps={saved + 2}"
    last = start("hit", steps, "resume=auto")
    assert last.end(240) == 0, last.text
    straight = start("straight", steps)
    assert straight.end(240) == 0, straight.text
    (hit,), (undisturbed,) = (list((tmp_path / "runs").glob(f"{name}-*")) for name in ("hit", "straight"))
    assert differences(undisturbed, hit) == []
