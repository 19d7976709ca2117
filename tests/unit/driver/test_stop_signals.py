"""Signals that end a job, as batch systems send them: to a whole group of processes, and several times."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kray.driver import stop_signals

ROOT = Path(__file__).parents[3]
CATCHER = """
import subprocess, sys, time
from kray.driver import stop_signals
stop_signals.SAME_S = 0.5
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
names = []
with stop_signals.caught(names.append):
    print("ready", flush=True)
    deadline = time.monotonic() + 30
    while len(names) < int(sys.argv[1]) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
print(*names, child.poll(), flush=True)
child.kill()
"""


@pytest.fixture(autouse=True)
def hangups_are_not_ignored():
    """Children inherit what is ignored, as SIGHUP is where tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def catcher(expected: int, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", CATCHER, str(expected)]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **options,
    )
    assert started.stdout.readline() == "ready\n"
    return started


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_to_the_process_and_to_its_group_are_one(name):
    """timeout signals the process that it has started and then the whole group; what leads a session of its own lives on."""
    process = catcher(1)
    process.send_signal(getattr(signal, name))
    os.killpg(process.pid, getattr(signal, name))
    assert process.communicate(timeout=30)[0] == f"{name} None\n"


def test_signals_that_come_later_are_another_request():
    process = catcher(2)
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGHUP)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "SIGTERM SIGINT None\n"


def test_a_closed_terminal_does_not_stop_what_nohup_protects():
    process = catcher(1, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    os.killpg(process.pid, signal.SIGHUP)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "SIGTERM None\n"


def test_only_signals_within_two_seconds_are_the_same(monkeypatch):
    monkeypatch.setattr(stop_signals, "_counted_at", float("-inf"))
    assert [stop_signals.counts(now) for now in (10.0, 10.5, 11.9, 12.1, 13.0, 20.0)] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with stop_signals.caught(stop_signals.interrupt):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


JOB = """
import atexit, sys, time
from kray.launch.main import guarded

class AfterAll:
    def __del__(self, sleep=time.sleep, write=sys.stdout.write, flush=sys.stdout.flush):
        write("last steps\\n")
        flush()
        sleep(0.5)

last = AfterAll()

def main():
    # Python's last steps take long on a busy machine.
    atexit.register(lambda: [print("ending", flush=True), time.sleep(0.5)])
    print("ready", flush=True)
    time.sleep(float(sys.argv[1]))

guarded(main)
"""


def job(seconds: float) -> subprocess.Popen:
    started = subprocess.Popen(
        [sys.executable, "-c", JOB, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert started.stdout.readline() == "ready\n"
    return started


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_job_that_has_not_begun_ends_with_one_message_and_130(name):
    process = job(30)
    for _ in range(3):
        os.killpg(process.pid, getattr(signal, name))
        time.sleep(0.1)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted\n")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize("until", ["ending\n", "last steps\n"])
def test_a_signal_while_a_job_ends_does_not_take_away_its_exit_code(name, until):
    process = job(0)
    while process.stdout.readline() != until:
        assert process.poll() is None
    os.killpg(process.pid, getattr(signal, name))
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


ENDLESS_END = """
import atexit, time
from kray.driver import stop_signals
from kray.launch.main import guarded
stop_signals.SAME_S = 0.05

def main():
    atexit.register(lambda: [print("ending", flush=True), time.sleep(60)])

guarded(main)
"""


def test_a_job_that_does_not_end_is_ended_by_the_second_signal():
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS_END],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
