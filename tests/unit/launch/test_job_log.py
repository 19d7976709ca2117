"""A job that is followed while its dashboard comes and goes."""

from __future__ import annotations

import asyncio
import enum
import time

import pytest

from kray.errors import KrayError
from kray.launch import job_log as following
from kray.launch.job_log import follow


class Status(enum.Enum):
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"

    def is_terminal(self) -> bool:
        return self is not Status.RUNNING


class Client:
    """Ray's client to a job that has written `lines` and ended as `end`. breaks: connections that are lost after so many."""

    def __init__(self, lines, breaks=(), end=Status.SUCCEEDED, away=0):
        self.lines, self.breaks, self.end, self.away = lines, list(breaks), end, away
        self.over, self.stopped = False, 0

    def stop_job(self, name):
        if self.away:
            raise ConnectionError("nobody is there")
        self.stopped += 1
        self.end = Status.STOPPED

    def get_job_status(self, name):
        if self.away:
            self.away -= 1
            raise ConnectionError("nobody is there")
        return self.end if self.over else Status.RUNNING

    def get_job_info(self, name):
        return type("Info", (), {"driver_exit_code": 2, "message": "it failed"})

    async def tail_job_logs(self, name):
        most = self.breaks.pop(0) if self.breaks else None
        for line in self.lines[:most]:
            yield line
        if most is not None:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        self.over = True


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(following, "PAUSE_S", 0.01)


@pytest.mark.parametrize("breaks", [(), (0,), (2, 3), (3, 1, 2)])
def test_a_lost_connection_costs_no_line_and_repeats_none(capsys, breaks):
    lines = ["one\n", "two\n", "three\n", "four\n"]
    assert follow(Client(lines, breaks, away=3), "job") == 0
    assert capsys.readouterr().out == "".join(lines)


def test_a_job_that_failed_or_was_stopped_ends_so(capsys):
    assert follow(Client([], end=Status.FAILED), "job") == 2
    assert follow(Client([], end=Status.STOPPED), "job") == 130


def test_a_stop_that_could_not_be_told_is_told_later(monkeypatch, capsys):
    client = Client(["one\n"], away=4)
    monkeypatch.setattr(following.signal, "signal", lambda number, handler: handler(number) if number == 2 else None)
    assert follow(client, "job") == 130
    assert client.stopped == 1
    told = capsys.readouterr()
    assert "will be told to stop when the dashboard answers" in told.err
    assert told.out == "one\njob job was stopped\n"


def test_output_that_can_never_be_had_ends_with_the_job_or_after_a_while(monkeypatch):
    monkeypatch.setattr(following, "AWAY_S", 0.1)
    with pytest.raises(KrayError, match=r"output of job j could not be had .*it goes on"):
        follow(Client(["one\n"], [0] * 10**4), "j")
    over = Client(["one\n"], [0] * 10**4)
    over.over = True
    assert follow(over, "j") == 0


def test_a_job_that_ray_has_forgotten_is_not_waited_for():
    client = Client([])
    client.get_job_status = lambda name: (_ for _ in ()).throw(RuntimeError("Request failed with status code 404: ..."))
    with pytest.raises(KrayError, match="job j is not known any more"):
        follow(client, "j")


def test_a_connection_that_is_dead_and_does_not_say_so_is_noticed(monkeypatch):
    monkeypatch.setattr(following, "ASK_S", 0.05)

    class Mute(Client):
        async def tail_job_logs(self, name):
            yield "one\n"
            self.away, self.over = 2, True
            await asyncio.sleep(60)

    began = time.monotonic()
    assert follow(Mute([]), "j") == 0
    assert time.monotonic() - began < 20


def test_a_dashboard_that_stays_away_is_given_up_and_the_job_is_not(monkeypatch):
    monkeypatch.setattr(following, "AWAY_S", 0.1)
    with pytest.raises(KrayError, match="it goes on: `ray job logs --follow j`"):
        follow(Client([], away=10**6), "j")
