"""What a job does while it follows its driver: requests to stop, signs of life, and a Ray that is lost."""

from __future__ import annotations

import queue
import time
from types import SimpleNamespace

import pytest
from logged_lines import logged_lines

from kray.cluster.folder_lock import FolderLock, LostLock
from kray.driver import remote
from kray.driver.remote import _Followed
from kray.driver.watch import AGAIN_S, SILENT_S, START_S, Silence
from kray.errors import InfrastructureError, KrayError


class QuietWatch:
    """A watch that is told what it hears."""

    lost = ""
    can_save = False

    def report(self) -> None:
        pass

    def lost_now(self) -> str:
        return self.lost


def followed(signals=(), stop_after_s=0.0, lock=None, watch=None):
    asked: list[str] = []
    driver = SimpleNamespace(stop=SimpleNamespace(remote=asked.append))
    return _Followed(driver, watch or QuietWatch(), lock, list(signals), stop_after_s), asked


def items(*given):
    made = queue.Queue()
    for item in given:
        made.put(item)
    return made


def test_lines_are_printed_and_the_result_is_returned(capsys):
    one, asked = followed()
    assert one.result(items("a line", 7, StopIteration())) == 7
    assert capsys.readouterr().out == "a line\n"
    assert asked == []


def test_the_first_signal_asks_the_driver_to_stop_once_and_the_second_interrupts():
    one, asked = followed(["SIGTERM"])
    with logged_lines() as lines:
        assert one.result(items("a line", 7, StopIteration())) == 7
    assert asked == ["by SIGTERM"]
    assert lines == ["SIGTERM: saving and ending; once more ends at once"]
    one, asked = followed(["SIGTERM", "SIGINT"])
    with pytest.raises(KeyboardInterrupt):
        one.result(items("a line", "another", "third"))
    assert asked == ["by SIGTERM"]


def test_a_run_ends_by_itself_before_its_limit(monkeypatch):
    age = iter([10.0, 899.0, 900.5, 901.0, 902.0])
    monkeypatch.setattr(remote, "age_s", lambda: next(age))
    one, asked = followed(stop_after_s=900.0)
    with logged_lines() as lines:
        assert one.result(items("a", "b", "c", "d", 7, StopIteration())) == 7
    assert asked == ["after run.stop_after_s, 900 s"]
    assert lines == ["after run.stop_after_s, 900 s: saving and ending"]


def test_a_signal_after_the_limit_is_the_second_request_of_nobody(monkeypatch):
    """The run saves already: a batch system's SIGTERM a little later must not interrupt that."""
    monkeypatch.setattr(remote, "age_s", lambda: 1000.0)
    one, asked = followed(stop_after_s=900.0)
    one._check()
    one.signals.append("SIGTERM")
    assert one.result(items(7, StopIteration())) == 7
    assert asked == ["after run.stop_after_s, 900 s"]


def test_a_driver_that_does_not_end_is_given_up(monkeypatch):
    monkeypatch.setattr(remote, "STOP_S", -1.0)
    one, _ = followed(["SIGTERM"])
    with pytest.raises(KrayError, match="did not end within -1 s after it was stopped by SIGTERM"):
        one.result(items())


def test_a_lost_ray_ends_the_wait_with_its_reason():
    watch = QuietWatch()
    watch.lost = "its raylet ended by SIGKILL"
    one, _ = followed(watch=watch)
    with pytest.raises(KrayError, match=r"Ray was lost, and the driver of this run with it: .*raylet ended by SIGKILL"):
        one.result(items())


def test_a_driver_saves_when_only_the_gcs_has_gone(monkeypatch):
    watch = QuietWatch()
    watch.lost, watch.can_save = "its gcs_server ended by SIGKILL", True
    one, asked = followed(watch=watch)
    with pytest.raises(KrayError, match="gcs_server ended by SIGKILL"):
        one.result(items("step 7", "saved", 7, StopIteration()))
    assert asked == ["because Ray was lost"]
    monkeypatch.setattr(remote, "SAVE_S", 0.3)
    one, asked = followed(watch=watch)
    began = time.monotonic()
    with pytest.raises(KrayError, match="gcs_server ended by SIGKILL"):
        one.result(items())
    assert time.monotonic() - began >= 0.3


def test_a_driver_that_died_with_its_node_is_not_started_again(monkeypatch):
    """Its death shows before that of its node."""
    from ray.exceptions import RayActorError

    watch = QuietWatch()
    watch.lost_now = lambda: "its raylet ended by SIGKILL"
    one, _ = followed(watch=watch)
    with pytest.raises(KrayError, match="raylet ended") as lost:
        one.result(items(RayActorError()))
    assert not isinstance(lost.value, InfrastructureError)
    one, _ = followed()
    with pytest.raises(InfrastructureError, match="the driver died"):
        one.result(items(RayActorError()))


def test_a_job_that_lost_its_lock_ends(tmp_path):
    lock = FolderLock.acquire(tmp_path, "a training")
    (tmp_path / ".lock/9.json").write_text("{}")
    lock.beat()
    one, _ = followed(lock=lock)
    with pytest.raises(LostLock):
        one.result(items())


def test_silence_is_said_once_and_again_and_its_end():
    silence = Silence(0.0, 1e9)
    assert silence.line(START_S - 1) == ""
    assert silence.heard(20.0, 1e9 + 20) == ""
    assert silence.line(20.0 + SILENT_S - 1) == ""
    since = time.strftime("%H:%M:%S", time.localtime(1e9 + 20))
    assert f"nothing has been heard of the driver since {since} (15 s)" in silence.line(20.0 + SILENT_S)
    assert silence.line(20.0 + SILENT_S + AGAIN_S - 1) == ""
    assert "(75 s)" in silence.line(20.0 + SILENT_S + AGAIN_S)
    assert silence.heard(100.0, 1e9 + 100) == "the driver answers again, after 80 s"
    assert silence.line(101.0) == ""
    assert silence.heard(102.0, 1e9 + 102) == ""


def test_a_driver_that_never_answers_is_reported():
    assert f"({START_S:.0f} s)" in Silence(0.0, 1e9).line(START_S)
