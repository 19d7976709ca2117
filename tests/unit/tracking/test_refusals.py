"""What MLflow refuses for good is told once and costs nothing else; what it cannot take just now waits."""

from __future__ import annotations

import json
import time

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)

from kray.config import TrackConfig
from kray.errors import ConfigError, InfrastructureError
from kray.tracking import Tracker
from kray.tracking.evaluations import log_evaluation
from kray.tracking.journal import Journal
from kray.tracking.mlflow_store import MlflowRun
from kray.tracking.refusals import deliver, refusal
from kray.tracking.store import Store, unreachable
from kray.tracking.writer import MAX_ATTEMPTS, Breaker, Writer

PLAIN = TrackConfig(system_metrics=False)


@pytest.fixture(autouse=True)
def no_ambient_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def client_of(folder) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (MlflowException("no", INVALID_PARAMETER_VALUE), True),
        (MlflowException("no", PERMISSION_DENIED), True),
        (MlflowException("no", RESOURCE_DOES_NOT_EXIST), True),
        (RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}), True),
        (MlflowException("API request to endpoint /x failed with error code 413 != 200. Body", INTERNAL_ERROR), True),
        (MlflowException("API request to endpoint /x failed with error code 503 != 200. Body", INTERNAL_ERROR), False),
        (MlflowException("no", REQUEST_LIMIT_EXCEEDED), False),
        (MlflowException("no", TEMPORARILY_UNAVAILABLE), False),
        (MlflowException("no", INTERNAL_ERROR), False),
        (ConnectionError("down"), False),
        (ValueError("?"), False),
    ],
)
def test_which_errors_are_final(error, final):
    assert bool(refusal(error)) == final
    store = Store("http://host", None, "track.uri")
    assert isinstance(unreachable(store, error), InfrastructureError) == (not final)


@given(st.lists(st.integers(), max_size=40, unique=True), st.data())
def test_one_bad_entry_costs_no_other(entries, data):
    bad = set(data.draw(st.lists(st.sampled_from(entries), max_size=4))) if entries else set()
    taken = []

    def send(some):
        if bad & set(some):
            raise MlflowException(f"bad: {sorted(bad & set(some))}", INVALID_PARAMETER_VALUE)
        taken.extend(some)

    refused = deliver(entries, send)
    assert taken == [entry for entry in entries if entry not in bad]
    assert [entry for entry, _ in refused] == [entry for entry in entries if entry in bad]


class Picky:
    """A destination that refuses some names for good. calls: of `metrics`."""

    def __init__(self, *names: str, code: int = INVALID_PARAMETER_VALUE):
        self.names, self.code, self.got, self.calls, self.ended = names, code, [], 0, None

    def answers(self) -> bool:
        return True

    def metrics(self, rows) -> None:
        self.calls += 1
        for row in rows:
            if bad := [name for name in self.names if name in row]:
                raise MlflowException(f"bad name {bad[0]}", self.code)
        self.got += [(row["step"], name) for row in rows for name in row if name not in ("step", "time")]

    def end(self, status: str) -> None:
        self.ended = status


def wait_until(reached, limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_bad_metric_blocks_no_other(tmp_path):
    picky, journal = Picky("bad"), Journal(tmp_path)
    writer = Writer(journal, picky, lambda: None)
    for step in range(30):
        journal.append(step, {"a": 1.0, "bad": 2.0, "b": 3.0}, 0.0)
        writer.wake()
        wait_until(lambda step=step: (step, "b") in picky.got)
    assert picky.calls < 60  # after a few refusals the name is not sent any more
    assert writer.finish("FINISHED", 5.0)
    assert sorted(picky.got) == [(step, name) for step in range(30) for name in ("a", "b")]
    assert writer.lost == ["metric bad (bad name bad)"]
    assert journal.undelivered == []


class Slow:
    """A server that answers, but only to small requests, as one on a busy machine. calls: of `metrics`."""

    def __init__(self, values: int):
        self.values, self.got, self.calls = values, [], 0

    def answers(self) -> bool:
        return True

    def metrics(self, rows) -> None:
        self.calls += 1
        try:
            if sum(len(row) - 2 for row in rows) > self.values:
                raise requests.exceptions.ReadTimeout("read timed out")
        except requests.exceptions.ReadTimeout as error:
            # Without a cause, as MLflow raises it.
            raise MlflowException(f"API request failed with exception {error}")  # noqa: B904
        self.got += [row["step"] for row in rows]

    def end(self, status: str) -> None: ...


def test_metrics_that_get_no_answer_are_sent_again_in_smaller_portions(tmp_path, monkeypatch):
    monkeypatch.setattr(Breaker, "failed", lambda self, now: None)
    slow, journal = Slow(values=100), Journal(tmp_path)
    for step in range(40):
        journal.append(step, {f"m{k}": 1.0 for k in range(50)}, 0.0)
    writer = Writer(journal, slow, lambda: None)
    while len(slow.got) < 40:
        before = slow.calls
        writer.wake()
        wait_until(lambda before=before: slow.calls > before)
    assert slow.calls > MAX_ATTEMPTS + 1
    assert writer.finish("FINISHED", 5.0)
    assert slow.got == list(range(40))
    assert writer.lost == journal.undelivered == []


def test_a_refused_run_keeps_its_metrics_for_a_resume(tmp_path):
    picky, journal = Picky("a", code=PERMISSION_DENIED), Journal(tmp_path, reader="run")
    writer = Writer(journal, picky, lambda: None)
    for step in range(5):
        journal.append(step, {"a": 1.0}, 0.0)
        writer.wake()
    delivered = []
    writer.put("table", lambda: delivered.append("table"))
    assert writer.finish("FINISHED", 5.0)
    assert picky.calls == 1
    assert delivered == ["table"]
    assert writer.refusal == "bad name a"
    assert journal.undelivered == list(range(5))


def test_a_refused_item_is_given_up_at_once(tmp_path):
    writer, calls = Writer(Journal(tmp_path), Picky(), lambda: None), []

    def refuse():
        calls.append(1)
        raise MlflowException("too large", INVALID_PARAMETER_VALUE)

    writer.put("bad", refuse)
    writer.put("good", lambda: None)
    assert writer.finish("FINISHED", 5.0)
    assert (calls, writer.lost, writer.delivered_items) == ([1], ["bad (too large)"], 1)


def test_accuracies_of_test_sets_are_all_recorded(tmp_path):
    tracker = Tracker(PLAIN, tmp_path, "x", {}, {}, "")
    accuracies = {f"eval/accuracy_{name}": number / 10 for number, name in enumerate(("数学", "物理", "é", "ü", "e"))}
    tracker.log_step(1, accuracies)
    assert tracker.finish() == []
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert {name: value for name, value in line.items() if name.startswith("eval")} == accuracies
    assert client_of(tmp_path).get_run(tracker.mlflow_run_id).data.metrics == accuracies


def test_parameters_that_differ_in_odd_characters_stay_apart(tmp_path):
    params = {"tasks.easy?": 1, "tasks.easy!": 2, "tasks//x": 3, "tasks.数": 4, "plan.budget": 5, "": 6}
    tracker = Tracker(PLAIN, tmp_path, "x", params, {"tag?": "a", "tag!": "b"}, "")
    tracker.log_step(1, {"loss": 1.0})
    assert tracker.finish() == []
    run = client_of(tmp_path).get_run(tracker.mlflow_run_id)
    assert sorted(run.data.params.values()) == [str(number) for number in range(1, 7)]
    assert run.data.params["plan.budget"] == "5"
    assert {value for name, value in run.data.tags.items() if name.startswith("tag_")} == {"a", "b"}


def test_a_parameter_that_is_refused_does_not_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")
    tracker = Tracker(PLAIN, tmp_path, "x", {"system": "x" * 9000, "a": 1}, {}, "")
    tracker.log_step(1, {"loss": 1.0})
    (missing,) = tracker.finish()
    assert "lacks param system (" in missing
    run = client_of(tmp_path).get_run(tracker.mlflow_run_id)
    assert (run.data.params, run.data.metrics) == ({"a": "1"}, {"loss": 1.0})


def test_an_evaluation_is_recorded_without_what_is_refused(tmp_path, monkeypatch):
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", tmp_path.as_uri(), "track.uri")
    real = MlflowRun.metrics

    def picky(self, rows):
        Picky("bad").metrics(rows)
        real(self, rows)

    monkeypatch.setattr(MlflowRun, "metrics", picky)
    log_evaluation(store, "e", "x", "", {}, {}, 3, {"good": 1.0, "bad": 2.0, "also": 3.0}, [])
    (run,) = client_of(tmp_path).search_runs(["1"])
    assert run.data.metrics == {"good": 1.0, "also": 3.0}


def test_an_experiment_that_is_refused_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"track\.experiment 'x+' is refused by MLflow"):
        Tracker(TrackConfig(experiment="x" * 600, system_metrics=False), tmp_path, "x", {}, {}, "")


def test_a_run_that_another_store_holds_names_both_stores(tmp_path):
    import asyncio

    from kray.config import KrayConfig
    from kray.driver.actor import RUN, Driver

    config = KrayConfig(track=TrackConfig(uri=f"sqlite:///{tmp_path}/new.db", system_metrics=False))
    (tmp_path / RUN).write_text(json.dumps({"mlflow_run_id": "0" * 32, "mlflow": "sqlite:////old.db"}))
    driver = Driver(config, "m", str(tmp_path), "", {})
    with pytest.raises(ConfigError, match=r"new\.db \(track\.uri\) cannot be used.*recorded at sqlite:////old\.db"):
        asyncio.run(driver._connect_tracker("0" * 32, 3))
