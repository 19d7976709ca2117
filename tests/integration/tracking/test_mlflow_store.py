"""A real MLflow store: what is written can be read back, and servers that do not answer are named."""

import json
import socket
import time

import pytest

from kray.config import TrackConfig
from kray.errors import KrayError
from kray.records import Prompt
from kray.tracking import Tracker, budget_histogram, prompts_digest

PROMPTS = [Prompt(f"p{i}", str(i), "exact", "test", text=f"what is {i}?") for i in range(5)]


@pytest.fixture(autouse=True)
def no_ambient_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_round_trip_and_resume_in_sqlite(tmp_path, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    monkeypatch.setattr("kray.tracking.tracker.SYSTEM_EVERY_S", 0.2)
    params = {f"section.key{i}": i for i in range(150)}
    arguments = (TrackConfig(), tmp_path, "first", params, {"model": "tiny"}, "run: {}\n")
    tracker = Tracker(*arguments)
    for step in range(4):
        tracker.log_step(step, {"train/loss": step / 2, "eval/pass@4": 0.5, "bad": float("nan")})
    tracker.log_table(2, [{"prompt": "a", "reward": 1.0}, {"prompt": "b", "tokens": 3}])
    tracker.log_figure(2, "budgets", lambda: budget_histogram([2, 4, 4], 8))
    tracker.log_dataset("train", PROMPTS, "train")
    tracker.set_tags({"note": "hello"})
    time.sleep(0.6)
    run_id = tracker.mlflow_run_id
    assert tracker.finish("KILLED") == []
    assert tracker.open_command == (
        f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db --host 127.0.0.1 --port 5000"
    )

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.info.run_name == "first"
    assert run.data.params == {key: str(value) for key, value in params.items()}
    assert run.data.tags["model"] == "tiny"
    assert run.data.tags["note"] == "hello"
    history = client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5)]
    assert run.data.metrics["tracking/nonfinite"] == 1
    assert run.data.metrics["eval/pass_4-68675aa1"] == 0.5
    assert "system/cpu_utilization_percentage" in run.data.metrics
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("train", prompts_digest(PROMPTS))
    assert json.loads(dataset.profile) == {"num_rows": 5}
    with monkeypatch.context() as ambient:  # load_table looks for runs at the ambient URI only
        ambient.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        table = client.load_table(run.info.experiment_id, "samples/step-000002.json", run_ids=[run_id])
    assert list(table["prompt"]) == ["a", "b"]
    assert list(table.columns) == ["prompt", "reward", "tokens"]
    assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/budgets-000002.png"]
    assert any(file.path.startswith("images/budgets") for file in client.list_artifacts(run_id, "images"))
    assert (tmp_path / "mlruns-artifacts" / run_id / "artifacts" / "config.yaml").read_text() == "run: {}\n"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert "bad" not in lines[0]

    params["section.key0"] = "changed"  # parameters cannot change in MLflow: a resumed run logs none
    again = Tracker(*arguments, mlflow_run_id=run_id, resume_step=1)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert again.mlflow_run_id == run_id
    again.log_step(2, {"train/loss": 9.0})
    again.log_step(3, {"train/loss": 9.5})
    assert again.finish() == []
    assert client.get_run(run_id).info.status == "FINISHED"
    assert sorted(p.step for p in client.get_metric_history(run_id, "train/loss")) == [0, 1, 2, 2, 3, 3]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/loss"] for line in lines] == [0.0, 0.5, 9.0, 9.5]
    names = {file.path for file in client.list_artifacts(run_id)}
    assert {"config.yaml", "config-resumed-000001.yaml"} <= names
    assert len(client.search_runs([run.info.experiment_id], run_view_type=ViewType.ALL)) == 1


def test_a_resumed_run_that_mlflow_does_not_know_is_named(tmp_path):
    with pytest.raises(KrayError, match=r"mlflow.db.*cannot be used.*0123456789abcdef"):
        Tracker(TrackConfig(), tmp_path, "x", {}, {}, "", mlflow_run_id="0123456789abcdef" * 2, resume_step=1)


def test_a_server_that_is_not_there_is_named_at_once(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(KrayError, match=f"{uri} .track.uri. cannot be used"):
            Tracker(TrackConfig(uri=uri), tmp_path, "x", {}, {}, "")
        assert time.monotonic() - began < 15


def test_a_server_that_never_answers_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("kray.tracking.tracker.SERVER_START_S", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(KrayError, match=f"{uri} .track.uri. cannot be used: no answer after 1 s"):
            Tracker(TrackConfig(uri=uri), tmp_path, "x", {}, {}, "")
