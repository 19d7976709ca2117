"""One writer for a folder: who is refused, who waits, and who may take over."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from logged_lines import logged_lines

from kray.cluster import lock_files
from kray.cluster.folder_lock import FolderLock, LostLock, Timing
from kray.cluster.lock_files import newest
from kray.cluster.process_identity import age_s, is_dead, this_process
from kray.errors import ConfigError

ROOT = Path(__file__).parents[3]
FAST = Timing(beat_s=0.05, stale_s=0.6, lease_s=0.3, poll_s=0.02)
# Holds a lock until it is killed; what it writes after each check is counted in a file.
HOLDER = """
import sys, time
from pathlib import Path
from kray.cluster.folder_lock import FolderLock, LostLock, Timing
folder = Path(sys.argv[1])
lock = FolderLock.acquire(folder, "a training", timing=Timing(0.05, 0.6, 0.3, 0.02))
said = False
while True:
    try:
        lock.check()
    except LostLock as error:
        print(f"lost: {error}", flush=True)
        break
    (folder / "written").write_text(str(lock.ticket.generation))
    print("wrote", flush=True) if not said else None
    said = True
    time.sleep(0.01)
"""


def acquire(folder: Path, **given) -> FolderLock:
    return FolderLock.acquire(folder, "a training", timing=FAST, **given)


@pytest.fixture
def holder():
    """Start processes that hold the lock of a folder; return each when it does."""
    with contextlib.ExitStack() as running:

        def start(folder: Path) -> subprocess.Popen:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-c", HOLDER, str(folder)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            running.callback(process.wait)
            running.callback(process.kill)
            assert process.stdout.readline() == "wrote\n"
            return process

        yield start


def elsewhere(folder: Path) -> None:
    """Make the lock one of another machine, whose processes cannot be seen from here."""
    for file in [*folder.glob(".lock/*.json"), *folder.glob(".lock/*.beat")]:
        record = json.loads(file.read_text()) | {"machine": "another", "host": "far"}
        file.write_text(json.dumps(record).ljust(512))


def test_a_second_owner_is_refused_with_one_message_that_names_the_first(tmp_path, holder):
    first = holder(tmp_path)
    began = time.monotonic()
    with pytest.raises(ConfigError) as refused:
        acquire(tmp_path)
    assert time.monotonic() - began < FAST.stale_s
    for part in (str(tmp_path), "a training", os.uname().nodename, f"process {first.pid}", time.strftime("%Y-%m-%d")):
        assert part in str(refused.value)
    assert f"to have it save and end: kill {first.pid} on" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_how_to_stop_a_job_is_said_as_the_job_says_it(tmp_path):
    with acquire(tmp_path, stop="ray job stop kray-1"), pytest.raises(ConfigError, match="end: ray job stop kray-1"):
        acquire(tmp_path)


def test_a_released_lock_is_taken_at_once_and_generations_grow(tmp_path):
    for generation in (1, 2, 3):
        began = time.monotonic()
        with acquire(tmp_path) as lock:
            assert lock.ticket.generation == generation
        assert time.monotonic() - began < FAST.stale_s
    assert len(list(tmp_path.glob(".lock/*.json"))) == 1


def test_the_lock_of_a_killed_process_is_taken_at_once(tmp_path, holder):
    first = holder(tmp_path)
    first.kill()
    first.wait()
    began = time.monotonic()
    with acquire(tmp_path) as lock:
        assert lock.ticket.generation == 2
    assert time.monotonic() - began < FAST.stale_s


def test_a_zombie_is_dead(tmp_path, holder):
    first = holder(tmp_path)
    first.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with acquire(tmp_path):
        pass


def test_a_pid_that_was_given_to_a_newer_process_is_dead(tmp_path):
    with acquire(tmp_path):
        assert not is_dead(this_process())
        assert is_dead(this_process() | {"started": this_process()["started"] - 1})
        assert is_dead(this_process() | {"pid": 2**22 + 1})


@pytest.mark.parametrize("changed", [{"machine": "another"}, {"machine": ""}, {"started": 0}, {"pid": None}])
def test_what_cannot_be_told_from_here_is_not_dead(changed):
    assert not is_dead({"pid": 2**22 + 1, "started": 7, "machine": this_process()["machine"]} | changed)


def test_the_age_of_this_process_is_known():
    assert 0 < age_s() < time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_far_owner_of_whom_nothing_is_heard_is_taken_over_when_it_is_stale(tmp_path, holder):
    first = holder(tmp_path)
    first.kill()
    first.wait()
    elsewhere(tmp_path)
    began = time.monotonic()
    with acquire(tmp_path) as lock:
        assert time.monotonic() - began >= FAST.stale_s
        assert lock.ticket.generation == 2


def test_an_owner_that_is_gone_by_its_ray_is_taken_over_sooner_but_not_within_its_lease(tmp_path, holder):
    timing = Timing(beat_s=0.05, stale_s=3.0, lease_s=0.3, poll_s=0.02)
    first = holder(tmp_path)
    first.kill()
    first.wait()
    elsewhere(tmp_path)
    generation = newest(tmp_path / ".lock").generation
    (tmp_path / f".lock/{generation}.note").write_text(json.dumps({"job": "07"}))
    began = time.monotonic()
    with FolderLock.acquire(tmp_path, "x", timing=timing, is_gone=lambda noted: noted == {"job": "07"}) as lock:
        assert timing.lease_s < 1.0 <= time.monotonic() - began < timing.stale_s
        lock.note({"job": "08"})
        assert newest(tmp_path / ".lock").noted == {"job": "08"}


def test_what_a_killed_job_leaves_running_for_a_moment_is_waited_for(tmp_path, holder):
    """Its driver beats once more before it ends with its job."""
    first = holder(tmp_path)
    first.kill()
    first.wait()
    beat = tmp_path / ".lock/1.driver-0.beat"
    beat.write_text(json.dumps(this_process() | {"count": 1}))

    def end() -> None:
        for count in range(2, 5):
            time.sleep(0.1)
            beat.write_text(json.dumps(this_process() | {"count": count}))
        beat.write_text(json.dumps(this_process() | {"started": 1}))

    ending = threading.Thread(target=end)
    ending.start()
    with acquire(tmp_path) as lock:
        assert lock.ticket.generation == 2
    ending.join()


def test_clocks_of_two_hosts_are_not_compared(tmp_path, holder, monkeypatch):
    """A beat counts because it changes: times of files and clocks may be years apart."""
    holder(tmp_path)
    long_ago = 10**9
    monkeypatch.setattr(time, "time", lambda: 0.0)
    for file in tmp_path.glob(".lock/*"):
        os.utime(file, (long_ago, long_ago))
    with pytest.raises(ConfigError, match="is in use by"):
        acquire(tmp_path)


def test_who_waits_is_told_so(tmp_path, holder, monkeypatch):
    from kray.cluster import folder_lock

    monkeypatch.setattr(folder_lock, "SAY_AFTER_S", 0.1)
    first = holder(tmp_path)
    first.kill()
    first.wait()
    elsewhere(tmp_path)
    with logged_lines() as lines, acquire(tmp_path):
        pass
    assert [f"process {first.pid}" in line and "nothing is heard" in line for line in lines] == [True]


def test_a_stopped_process_that_lost_its_lock_writes_nothing_more(tmp_path, holder):
    first = holder(tmp_path)
    first.send_signal(signal.SIGSTOP)
    try:
        with acquire(tmp_path) as lock:
            assert lock.ticket.generation == 2
            (tmp_path / "written").unlink()
            first.send_signal(signal.SIGCONT)
            assert "its lock was taken by" in first.stdout.readline()
            assert first.wait(10) == 0
            assert not (tmp_path / "written").exists()
            lock.check()
    finally:
        first.send_signal(signal.SIGCONT)


def test_a_process_that_was_stopped_for_a_moment_keeps_its_lock(tmp_path, holder):
    first = holder(tmp_path)
    first.send_signal(signal.SIGSTOP)
    time.sleep(FAST.stale_s / 2)
    refused = []

    def try_it() -> None:
        with contextlib.suppress(ConfigError):
            acquire(tmp_path)
            return
        refused.append(True)

    trying = threading.Thread(target=try_it)
    trying.start()
    time.sleep(FAST.stale_s / 2)
    first.send_signal(signal.SIGCONT)
    trying.join(10)
    assert refused == [True]
    assert first.poll() is None


def test_the_owners_other_processes_keep_the_lock_alive(tmp_path, holder):
    """The job was stopped; its driver works on, so that the lock is not stale."""
    lock = acquire(tmp_path)
    driver = FolderLock.join(lock.ticket, "driver-0", FAST)
    # The job's own beats end, as those of a process that is stopped.
    lock._ended.set()
    time.sleep(2 * FAST.stale_s)
    with pytest.raises(ConfigError, match="is in use by"):
        acquire(tmp_path)
    driver.check()
    driver.leave()
    lock.release()


def test_a_driver_that_is_started_again_works_for_the_same_lock_at_once(tmp_path):
    with acquire(tmp_path) as lock:
        for number in range(3):
            began = time.monotonic()
            driver = FolderLock.join(lock.ticket, f"driver-{number}", FAST)
            driver.check()
            assert time.monotonic() - began < FAST.stale_s / 2
            driver.leave()


def test_a_driver_is_told_once_that_the_lock_was_lost(tmp_path):
    lock, told = acquire(tmp_path), []
    driver = FolderLock.join(lock.ticket, "driver-0", FAST, on_lost=lambda: told.append(True))
    (tmp_path / ".lock/9.json").write_text(json.dumps({"token": "x", "user": "she", "host": "there"}))
    deadline = time.monotonic() + 10
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(3 * FAST.beat_s)
    assert told == [True]
    with pytest.raises(LostLock, match="its lock was taken by she on there"):
        driver.check()
    with pytest.raises(LostLock):
        FolderLock.join(lock.ticket, "driver-1", FAST)


def test_a_lock_that_was_removed_is_lost(tmp_path):
    lock = acquire(tmp_path)
    shutil.rmtree(tmp_path / ".lock")
    time.sleep(FAST.lease_s)
    with pytest.raises(LostLock, match="its lock was removed"):
        lock.check()


def test_one_of_many_that_want_a_lock_gets_it(tmp_path, holder):
    """All see the same dead owner."""
    first = holder(tmp_path)
    first.kill()
    first.wait()
    held, refused = [], []

    def want() -> None:
        try:
            held.append(acquire(tmp_path))
        except ConfigError:
            refused.append(True)

    wanting = [threading.Thread(target=want) for _ in range(12)]
    for thread in wanting:
        thread.start()
    for thread in wanting:
        thread.join(30)
    assert (len(held), len(refused)) == (1, 11)
    held[0].check()
    held[0].release()


def test_an_owner_that_lives_after_all_keeps_its_lock(tmp_path):
    """Its beat comes between the look of who takes over and the new generation."""
    lock = acquire(tmp_path)
    stale = newest(tmp_path / ".lock")
    beats = stale.beats()
    lock.beat()
    assert lock_files.take(tmp_path / ".lock", stale, lock_files.owner_of("a training", ""), beats) == 0
    lock.check()
    assert newest(tmp_path / ".lock").generation == 1
    lock.release()


def test_file_systems_without_hard_links_are_served(tmp_path, monkeypatch):
    def refuse(*_) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    with acquire(tmp_path) as lock:
        lock.check()
        with pytest.raises(ConfigError, match="is in use by"):
            acquire(tmp_path)


def test_a_reply_that_was_lost_on_the_way_is_no_refusal(tmp_path, monkeypatch):
    link = os.link

    def made_but_reported(source, target) -> None:
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", made_but_reported)
    with acquire(tmp_path) as lock:
        lock.check()


def test_a_beat_that_cannot_be_written_loses_nothing_while_nobody_takes_over(tmp_path):
    lock = acquire(tmp_path)
    lock._file.unlink()
    lock._file.mkdir()
    time.sleep(2 * FAST.lease_s)
    lock.check()
    lock._ended.set()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/run cannot be locked: Not a directory"):
        acquire(tmp_path / "file/run")


def test_a_lock_beside_a_path_leaves_the_path_alone_and_nothing_behind(tmp_path):
    with acquire(tmp_path / "model", beside=True) as lock:
        lock.check()
        assert [file.name for file in tmp_path.iterdir()] == [".lock-model"]
        with pytest.raises(ConfigError, match=r"model is in use by"):
            acquire(tmp_path / "model", beside=True)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_not_released_before_the_owners_processes_have_ended(tmp_path, monkeypatch):
    from kray.cluster import folder_lock

    monkeypatch.setattr(folder_lock, "OTHERS_END_S", 0.2)
    lock = acquire(tmp_path)
    driver = FolderLock.join(lock.ticket, "driver-0", FAST)
    lock.release()
    assert not newest(tmp_path / ".lock").released
    driver.leave()


def test_an_unreadable_lock_is_taken_when_nothing_changes(tmp_path):
    (tmp_path / ".lock").mkdir()
    (tmp_path / ".lock/4.json").write_text("")
    began = time.monotonic()
    with acquire(tmp_path) as lock:
        assert lock.ticket.generation == 5
    assert time.monotonic() - began >= FAST.stale_s


def test_a_lock_in_a_folder_that_became_read_only_is_left_without_an_error(tmp_path, monkeypatch):
    lock = acquire(tmp_path)
    with monkeypatch.context() as patched:
        for name in ("unlink", "touch"):
            patched.setattr(Path, name, lambda *_, **__: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
        lock.release()
    assert (tmp_path / ".lock" / "1.job.beat").exists()
