"""A job that is followed while its dashboard comes and goes."""

from __future__ import annotations

import enum

import pytest

from kray import follow as following
from kray.follow import follow
from kray.records import KrayError


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
        self.over = False

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


def test_a_dashboard_that_stays_away_is_given_up_and_the_job_is_not(monkeypatch):
    monkeypatch.setattr(following, "AWAY_S", 0.1)
    with pytest.raises(KrayError, match="job j goes on: `ray job logs --follow j`"):
        follow(Client([], away=10**6), "j")
