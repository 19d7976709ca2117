"""The journal, the writer and the figures, without MLflow."""

import json
import random
import threading
import time

import numpy as np
import pytest

from kray.errors import KrayError
from kray.tracking import METRICS, budget_histogram, budgets_against_beliefs, learning_curve
from kray.tracking.journal import Journal
from kray.tracking.names import name_of
from kray.tracking.store import locate
from kray.tracking.writer import Breaker, Writer


def steps_in(journal):
    return [json.loads(line)["step"] for line in journal.path.read_text().splitlines()]


def test_a_step_stands_once_and_a_second_call_adds_to_it(tmp_path):
    journal = Journal(tmp_path)
    journal.append(0, {"a": 1.0}, 100.0)
    journal.append(1, {"a": 2.123456}, 101.0)
    journal.append(1, {"a": 2.0, "b": 3.0, "step": 9.0}, 102.0)
    rows, _ = journal.pending(100)
    assert rows == [{"step": 0, "time": 100.0, "a": 1.0}, {"step": 1, "time": 101.0, "a": 2.0, "b": 3.0}]
    with pytest.raises(ValueError, match="step 0 comes after step 1"):
        journal.append(0, {}, 1.0)


def test_resume_drops_the_abandoned_future_and_a_torn_line(tmp_path):
    journal = Journal(tmp_path)
    for step in range(6):
        journal.append(step, {"a": float(step)}, 0.0)
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b'{"step": 6, "ti')
    again = Journal(tmp_path, resume_step=3)
    assert steps_in(again) == [0, 1, 2, 3]
    assert again.last_step == 3
    again.append(4, {}, 0.0)
    assert steps_in(again) == [0, 1, 2, 3, 4]
    with pytest.raises(KrayError, match="already holds steps"):
        Journal(tmp_path)
    assert steps_in(Journal(tmp_path, resume_step=-1)) == []


def test_a_file_that_cannot_be_written_any_more_is_named(tmp_path):
    journal = Journal(tmp_path)
    for step in range(3):
        journal.append(step, {"a": 1.0}, 0.0)
    journal.close()
    with open("/dev/full", "r+b", buffering=0) as journal._file:
        with pytest.raises(KrayError, match=r"metrics.jsonl cannot be written \(No space.*metrics of step 3"):
            journal.append(3, {"a": 1.0}, 0.0)
        with pytest.raises(KrayError, match=r"metrics.jsonl cannot be written .*goes back to step 1"):
            journal.rewind(1)
    assert steps_in(Journal(tmp_path, resume_step=2)) == [0, 1, 2]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n')
    with pytest.raises(KrayError, match=r"metrics.jsonl:2"):
        Journal(tmp_path, resume_step=9)


def test_the_reader_goes_on_where_it_stopped(tmp_path):
    journal = Journal(tmp_path, reader="run-1")
    for step in range(5):
        journal.append(step, {"a": 1.0, "b": 1.0}, 0.0)
    rows, mark = journal.pending(limit=6)
    assert [row["step"] for row in rows] == [0, 1, 2]
    journal.delivered(mark)
    assert journal.undelivered == [3, 4]
    assert Journal(tmp_path, 4, reader="run-1").undelivered == [3, 4]
    assert Journal(tmp_path, 4, reader="run-2").undelivered == [0, 1, 2, 3, 4]
    assert Journal(tmp_path, 1, reader="run-1").undelivered == []


def test_line_that_grew_during_delivery_is_sent_again(tmp_path):
    journal = Journal(tmp_path)
    journal.append(0, {"a": 1.0}, 0.0)
    journal.append(1, {"a": 1.0}, 0.0)
    _, mark = journal.pending(100)
    journal.append(1, {"b": 2.0}, 0.0)
    journal.delivered(mark)
    assert journal.undelivered == [1]
    journal.append(2, {}, 0.0)
    _, mark = journal.pending(100)
    journal.delivered(mark)
    assert journal.undelivered == []


def test_breaker_waits_ever_longer_and_forgets_on_success():
    breaker = Breaker(first_s=1.0, longest_s=5.0)
    assert breaker.ready(0.0)
    waits = []
    for _ in range(4):
        breaker.failed(10.0)
        waits.append(breaker.wait_s)
    assert waits == [1.0, 2.0, 4.0, 5.0]
    assert not breaker.ready(14.9)
    assert breaker.ready(15.0)
    breaker.worked()
    assert breaker.ready(0.0)


class Flaky:
    """A destination that fails when told to."""

    def __init__(self):
        self.up, self.refuses, self.got, self.ended, self.hang = True, False, [], None, threading.Event()
        self.portions: list[int] = []

    def answers(self):
        return self.up

    def metrics(self, rows):
        if not self.up or self.refuses:
            raise ConnectionError("down")
        self.portions.append(len(rows))
        self.got += [row["step"] for row in rows]

    def send(self, label):
        if not self.up:
            raise ConnectionError("down")
        self.got.append(label)

    def end(self, status):
        if not self.up:
            raise ConnectionError("down")
        self.ended = status


@pytest.fixture
def fast(monkeypatch):
    """Breakers that wait milliseconds."""
    monkeypatch.setattr(Breaker, "ready", lambda self, now: True)
    monkeypatch.setattr("kray.tracking.writer.time.sleep", lambda s, sleep=time.sleep: sleep(min(s, 0.01)))


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_over_outages(tmp_path, fast, seed):
    chance, flaky = random.Random(seed), Flaky()
    journal = Journal(tmp_path)
    writer = Writer(journal, flaky, lambda: None)
    for step in range(40):
        flaky.up = chance.random() < 0.6
        journal.append(step, {"a": 1.0}, 0.0)
        writer.put(f"item {step}", lambda step=step: flaky.send(f"item {step}"))
        time.sleep(0.002)
    flaky.up = True
    assert writer.finish("FINISHED", 10.0)
    assert flaky.ended == "FINISHED"
    assert [got for got in flaky.got if isinstance(got, int)] == list(range(40))
    assert writer.put_items == writer.delivered_items + len(writer.lost) + len(writer.waiting)
    assert set(flaky.got) - set(range(40)) == {f"item {step}" for step in range(40)} - set(writer.lost)


def test_steps_that_end_soon_after_each_other_are_delivered_together(tmp_path):
    flaky, journal = Flaky(), Journal(tmp_path)
    writer = Writer(journal, flaky, lambda: None, gather_s=60.0)
    assert writer.opened.wait(5)
    for step in range(20):
        journal.append(step, {"a": 1.0}, 0.0)
        writer.wake()
        time.sleep(0.005)
    began = time.monotonic()
    assert writer.finish("FINISHED", 10.0), "the wait for more ends with the run"
    assert time.monotonic() - began < 10
    assert flaky.got == list(range(20))
    assert len(flaky.portions) <= 2


def test_what_a_living_store_refuses_is_given_up_and_told(tmp_path, fast):
    flaky, journal = Flaky(), Journal(tmp_path)
    writer = Writer(journal, flaky, lambda: None)

    def refuse():
        raise ValueError("too large")

    writer.put("bad", refuse)
    writer.put("good", lambda: flaky.send("good"))
    assert writer.finish("FINISHED", 5.0)
    assert writer.lost == ["bad"]
    assert flaky.got == ["good"]


def test_finish_ends_on_time_when_the_store_is_down(tmp_path, fast):
    flaky, journal = Flaky(), Journal(tmp_path)
    writer = Writer(journal, flaky, lambda: None, capacity=2)
    assert writer.opened.wait(5)
    flaky.up = False
    journal.append(0, {"a": 1.0}, 0.0)
    for label in "abc":
        writer.put(label, lambda: flaky.send("x"))
    began = time.monotonic()
    assert not writer.finish("FAILED", 0.3)
    assert time.monotonic() - began < 3
    assert journal.undelivered == [0]
    assert sorted(writer.waiting + writer.lost) == ["a", "b", "c"]


def test_a_failure_to_open_is_kept(tmp_path):
    def fail():
        raise KrayError("no")

    writer = Writer(Journal(tmp_path), Flaky(), fail)
    assert writer.opened.wait(5)
    assert str(writer.failure) == "no"


def test_where_the_store_is(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert locate("", tmp_path).uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert locate("", tmp_path).artifacts == f"file://{tmp_path}/mlruns-artifacts"
    for uri in ("postgresql://u@host/db", "mysql+pymysql://u@host/db"):  # nobody there keeps files
        assert locate(uri, tmp_path / "run").artifacts == f"file://{tmp_path}/mlruns-artifacts"
    assert locate(f"sqlite:///{tmp_path}/a.db", tmp_path / "x").artifacts == f"file://{tmp_path}/mlruns-artifacts"
    for bad in ("sqlite:///here.db", "file:///tmp/mlruns", "mlruns"):
        with pytest.raises(KrayError, match=r"track.uri"):
            locate(bad, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    store = locate("", tmp_path)
    assert store.remote
    assert store.artifacts is None
    assert store.shown == "http://me:***@host:5000"


def test_names_are_made_fit():
    assert name_of("eval/pass@4 (a=b)%[x]") == "eval/pass_4 _a_b___x_-92fa3fdc"
    assert name_of("eval/accuracy_数学") == "eval/accuracy_数学"
    assert all(name_of(name) == name for name in METRICS if "<" not in name)


def test_figures_render_any_data(tmp_path):
    chance = np.random.default_rng(0)
    success = chance.random(50)
    success[:5] = np.nan
    rows = [
        {"step": s, "reward/mean": -0.5 + s / 100, **({"eval/accuracy": 0.5} if s % 20 == 0 else {})} for s in range(90)
    ]
    figures = [
        budgets_against_beliefs(success, chance.integers(2, 32, 50), success[::-1]),
        budgets_against_beliefs(np.array([]), np.array([]), np.array([])),
        budget_histogram(chance.integers(2, 128, 50), 128),
        budget_histogram(np.array([], dtype=int), 8),
        learning_curve(rows),
        learning_curve([]),
    ]
    for i, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 3000
        assert figure.axes[0].get_xlabel()
        assert figure.axes[0].get_ylabel()
        assert figure.axes[0].get_title(loc="left")
    with pytest.raises(ValueError, match="lengths differ"):
        budgets_against_beliefs(success, success[:3], success)


def test_rewound_run_drops_lines_and_delivers_new_ones(tmp_path):
    journal = Journal(tmp_path, reader="run")
    for step in range(6):
        journal.append(step, {"a": step}, 0.0)
    rows, mark = journal.pending(1000)
    journal.rewind(2)  # while they are on their way
    journal.append(3, {"a": 30}, 0.0)
    journal.append(4, {"a": 40}, 0.0)
    journal.append(4, {"b": 1}, 0.0)
    journal.delivered(mark)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    rows, mark = journal.pending(1000)
    assert [(row["step"], row["a"]) for row in rows] == [(3, 30), (4, 40)]
    journal.delivered(mark)
    journal.rewind(9)
    assert journal.undelivered == []
    journal.rewind(-1)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    journal.append(0, {"a": 7}, 0.0)
    assert [row["a"] for row in journal.pending(1000)[0]] == [7]
