"""Runs whose MLflow server is killed and restarted."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from kray.config import TrackConfig
from kray.tracking import Tracker, budget_histogram


@pytest.fixture(autouse=True)
def no_ambient_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def start_server(folder, port):
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    log = (folder / "server.log").open("ab")
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment, cwd=folder)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return process
        except OSError:
            time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError((folder / "server.log").read_text()[-2000:])


def stop(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def losses(client, run_id):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, "loss")]


def test_restarted_mlflow_server_gets_everything(tmp_path):
    from mlflow import MlflowClient

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    arguments = (TrackConfig(uri=uri, system_metrics=False), tmp_path / "run", "x", {"a": 1}, {}, "run: {}\n")
    client = MlflowClient(tracking_uri=uri)
    server = start_server(tmp_path, port)
    try:
        tracker = Tracker(*arguments)
        assert tracker.open_command.startswith(f"{uri}/#/experiments/")
        for step in range(3):
            tracker.log_step(step, {"loss": float(step)})
        time.sleep(1.0)
        stop(server)  # it dies while the run goes on
        for step in range(3, 12):
            began = time.monotonic()
            tracker.log_step(step, {"loss": float(step)})
            tracker.log_table(step, [{"prompt": str(step)}])
            tracker.log_figure(step, "budgets", lambda: budget_histogram([2], 8))
            assert time.monotonic() - began < 2, "training waited for MLflow"
            time.sleep(0.2)
        server = start_server(tmp_path, port)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(losses(client, tracker.mlflow_run_id)) < 12:
            time.sleep(0.5)  # the run goes on and the writer delivers by itself
        while time.monotonic() < deadline and tracker.waiting:
            time.sleep(0.5)
        assert losses(client, tracker.mlflow_run_id) == [(step, float(step)) for step in range(12)]
        tables = [file.path for file in client.list_artifacts(tracker.mlflow_run_id, "samples")]
        assert tables == [f"samples/step-{step:06d}.json" for step in range(3, 12)]
        assert len(client.list_artifacts(tracker.mlflow_run_id, "figures")) == 9

        stop(server)  # it dies again and stays away to the end of the run
        tracker.log_step(12, {"loss": 12.0})
        tracker.log_step(13, {"loss": 13.0})
        missing = tracker.finish("KILLED", deadline_s=2.0)
        assert "lacks the metrics of steps 12 to 13" in missing[0]
        assert uri in missing[0]
        assert "has not recorded" in missing[-1]

        server = start_server(tmp_path, port)  # what is missing comes with the next resume
        again = Tracker(*arguments, tracker.mlflow_run_id, resume_step=12)
        again.log_step(13, {"loss": 13.5})
        assert again.finish() == []
        assert losses(client, again.mlflow_run_id) == [*((s, float(s)) for s in range(13)), (13, 13.5)]
        assert client.get_run(again.mlflow_run_id).info.status == "FINISHED"
    finally:
        stop(server)
