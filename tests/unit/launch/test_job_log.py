"""A job that is followed while its dashboard comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time

import pytest

from kray.errors import KrayError
from kray.launch import job_log
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
            raise ConnectionError("connection refused")
        self.stopped += 1
        self.end = Status.STOPPED

    def get_job_status(self, name):
        if self.away:
            self.away -= 1
            raise ConnectionError("connection refused")
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
    monkeypatch.setattr(job_log, "PAUSE_S", 0.01)


@pytest.mark.parametrize("breaks", [(), (0,), (2, 3), (3, 1, 2)])
def test_a_lost_connection_loses_and_repeats_no_line(capsys, breaks):
    lines = ["one\n", "two\n", "three\n", "four\n"]
    assert follow(Client(lines, breaks, away=3), "job") == 0
    assert capsys.readouterr().out == "".join(lines)


def test_exit_codes_of_failed_and_stopped_jobs(capsys):
    assert follow(Client([], end=Status.FAILED), "job") == 2
    assert follow(Client([], end=Status.STOPPED), "job") == 130


def test_a_stop_is_sent_when_the_dashboard_answers_again(monkeypatch, capsys):
    client = Client(["one\n"], away=4)
    monkeypatch.setattr(job_log, "caught", lambda stop: contextlib.nullcontext(stop("SIGINT")))
    assert follow(client, "job") == 130
    assert client.stopped == 1
    printed = capsys.readouterr()
    assert "will be stopped when the dashboard answers" in printed.err
    assert printed.out == "one\njob job was stopped\n"


def test_output_that_stays_unreadable_is_given_up(monkeypatch):
    monkeypatch.setattr(job_log, "AWAY_S", 0.1)
    with pytest.raises(KrayError, match=r"output of job j could not be read .*it goes on"):
        follow(Client(["one\n"], [0] * 10**4), "j")
    over = Client(["one\n"], [0] * 10**4)
    over.over = True
    assert follow(over, "j") == 0


def test_a_job_unknown_to_ray_is_given_up_at_once():
    client = Client([])
    client.get_job_status = lambda name: (_ for _ in ()).throw(RuntimeError("Request failed with status code 404: ..."))
    with pytest.raises(KrayError, match="Ray does not know job j any more"):
        follow(client, "j")


def test_a_silently_lost_connection_is_noticed(monkeypatch):
    monkeypatch.setattr(job_log, "ANSWER_S", 0.05)

    class Silent(Client):
        async def tail_job_logs(self, name):
            yield "one\n"
            self.away, self.over = 2, True
            await asyncio.sleep(60)

    began = time.monotonic()
    assert follow(Silent([]), "j") == 0
    assert time.monotonic() - began < 20


def test_a_dashboard_that_stays_away_is_given_up(monkeypatch):
    monkeypatch.setattr(job_log, "AWAY_S", 0.1)
    with pytest.raises(KrayError, match="it goes on: `ray job logs --follow j`"):
        follow(Client([], away=10**6), "j")
