"""A training as a process group of its own, hit by what batch systems and machines do to one."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import termios
import time

import pytest
from training_job import ENVIRONMENT, ROOT, Job, command, gone, saved_step

from kray.train.checkpoints import newest_checkpoint, read_state


@pytest.fixture(autouse=True)
def hangups_are_not_ignored():
    """Children inherit what is ignored, as SIGHUP is where tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def start(warm_policy, tmp_path):
    """Start jobs in one folder of runs; what is left of them is killed."""
    jobs = []

    def start(*overrides: str) -> Job:
        jobs.append(Job(f"model.path={warm_policy}", f"run.dir={tmp_path}", *overrides))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


def test_sigterm_to_the_group_saves_and_resumes(start):
    """As timeout sends it: to the process, and to its whole group."""
    job = start("run.steps=100000")
    job.wait_for(r"step +3/")
    started = job.descendants()
    job.process.send_signal(signal.SIGTERM)
    os.killpg(job.process.pid, signal.SIGTERM)
    time.sleep(0.5)
    os.killpg(job.process.pid, signal.SIGTERM)
    assert job.end() == 0, job.text
    done = int(re.search(r"stopped by SIGTERM after (\d+) of", job.text)[1])
    assert saved_step(job) == done
    assert gone(started) == {}
    more = start("resume=auto", f"run.steps={done + 1}", "run.stop_after_s=100000")
    assert more.end(240) == 0, more.text
    assert f"resumed after step {done}" in more.text


def test_a_closed_terminal_saves(warm_policy, tmp_path):
    """The kernel sends SIGHUP to the group of a terminal that is closed, and what is printed there fails from then on."""
    master, slave = os.openpty()
    job = subprocess.Popen(
        command(f"model.path={warm_policy}", f"run.dir={tmp_path}", "run.steps=100000"),
        cwd=ROOT,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env=ENVIRONMENT,
    )
    os.close(slave)
    text = b""
    try:
        while not re.search(rb"step +2/", text):
            text += os.read(master, 4096)
        os.close(master)
        assert job.wait(120) == 0
    finally:
        job.kill()
        job.wait(20)
    (folder,) = tmp_path.glob("batch-*")
    assert read_state(newest_checkpoint(folder))["step"] >= 2


def test_a_run_ends_by_itself_and_a_killed_one_is_resumed_at_once(start):
    job = start("run.steps=100000")
    job.wait_for(r"saved .*step-000002")
    second = start("run.steps=100000", "resume=auto")
    assert second.end(120) == 2, second.text
    assert f"process {job.process.pid}" in second.text
    assert "is in use by" in second.text
    os.kill(job.process.pid, signal.SIGKILL)
    job.process.wait(20)
    began = time.monotonic()
    again = start("run.steps=100000", "resume=auto", "run.stop_after_s=60")
    again.wait_for(r"going on after step")
    assert time.monotonic() - began < 55, "it waited for a heartbeat to become stale"
    assert again.end(240) == 0, again.text
    assert "stopped after run.stop_after_s, 60 s" in again.text
    assert saved_step(again) >= 2


@pytest.mark.parametrize("part", ["raylet/raylet", "gcs/gcs_server"])
def test_a_lost_ray_ends_the_job_with_what_is_saved(start, part):
    job = start("run.steps=100000")
    job.wait_for(r"saved .*step-000002")
    started = job.descendants()
    os.kill(job.find(part), signal.SIGKILL)
    began = time.monotonic()
    assert job.end(60) == 1, job.text
    assert time.monotonic() - began < 60
    assert re.search(
        r"^error: Ray was lost, and the driver of this run with it: its .* ended by SIGKILL$", job.text, re.M
    )
    assert re.search(r"saved +step \d+ of 100000", job.text)
    assert saved_step(job) >= 2
    assert "starting another" not in job.text
    assert gone(started) == {}


def test_a_stopped_driver_is_reported(start):
    job = start("run.steps=100000")
    job.wait_for(r"step +2/")
    driver = job.find("ray::Driver")
    os.kill(driver, signal.SIGSTOP)
    try:
        since = job.wait_for(r"nothing has been heard of the driver since (\d\d:\d\d:\d\d) \(1\d s\)", 40)[1]
        assert since
        time.sleep(5)
    finally:
        os.kill(driver, signal.SIGCONT)
    job.wait_for(r"the driver answers again, after \d\d s", 30)
    os.killpg(job.process.pid, signal.SIGINT)
    assert job.end() == 0, job.text
