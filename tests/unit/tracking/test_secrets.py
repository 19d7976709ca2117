"""No secret of the environment is in anything that a run leaves behind: files, MLflow's store, logs, errors."""

import logging
import socket

import pytest

from kray.config import TrackConfig, flat, load_config, to_yaml
from kray.errors import KrayError
from kray.launch.main import guarded
from kray.tracking import Tracker
from kray.tracking.store import locate

PLANTED = {
    "HF_TOKEN": "hf_PlantedPlantedPlanted",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret/key",
    "WANDB_API_KEY": "planted0123456789",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
}
IN_ADDRESSES = "planted-in-an-address"
SECRETS = [*PLANTED.values(), IN_ADDRESSES]


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def found_in(folder) -> list[tuple[str, str]]:
    """(file, secret) of every planted secret in any file under a folder, databases included."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [(path.name, secret) for path in files for secret in SECRETS if secret.encode() in path.read_bytes()]


def test_what_a_run_leaves_behind_holds_no_secret(tmp_path, caplog):
    given = tmp_path / "given.yaml"
    given.write_text(
        "model: {path: x}\n"
        f"prompts: {{train: {{kind: jsonl, path: 'https://me:{IN_ADDRESSES}@host/p.jsonl'}}}}\n"
        "reward: {options: {api_key: '${oc.env:WANDB_API_KEY}', aws: 'key=${oc.env:AWS_SECRET_ACCESS_KEY}'}}\n"
    )
    config, folder = load_config(given), tmp_path / "run"
    tags = {"model": f"https://me:{IN_ADDRESSES}@hub/model", "note": f"with {PLANTED['HF_TOKEN']}"}
    with caplog.at_level(logging.DEBUG):
        tracker = Tracker(TrackConfig(system_metrics=False), folder, "run", flat(config), tags, to_yaml(config))
        tracker.log_step(0, {"train/loss": 1.0})
        tracker.set_tags({"later": PLANTED["MLFLOW_TRACKING_PASSWORD"]})
        assert tracker.finish() == []
    assert found_in(folder) == []
    assert not [secret for secret in SECRETS if secret in caplog.text]

    from mlflow import MlflowClient

    run = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db").get_run(tracker.mlflow_run_id)
    assert run.data.params["reward.options.api_key"] == "***"
    assert run.data.params["prompts.train.path"] == "https://me:***@host/p.jsonl"
    assert (run.data.tags["note"], run.data.tags["later"]) == ("with ***", "***")


def test_parameters_are_redacted_even_when_the_caller_did_not(tmp_path):
    arguments = {"a": PLANTED["HF_TOKEN"], "b": 3}
    tracker = Tracker(
        TrackConfig(system_metrics=False), tmp_path, "run", arguments, {}, f"x: {PLANTED['WANDB_API_KEY']}\n"
    )
    tracker.finish()
    assert found_in(tmp_path) == []


def test_errors_about_a_server_hold_no_password(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for uri in (f"http://me:{IN_ADDRESSES}@127.0.0.1:{port}", f"file://me:{IN_ADDRESSES}@host/x"):
        with pytest.raises(KrayError) as caught:
            Tracker(TrackConfig(uri=uri), tmp_path / "run", "run", {}, {}, "")
        assert IN_ADDRESSES not in str(caught.value)
        assert "me:***@" in str(caught.value)
    assert IN_ADDRESSES not in locate(f"postgresql://me:{IN_ADDRESSES}@host/db", tmp_path).shown


@pytest.mark.usefixtures("same_signals")
def test_a_jobs_last_message_holds_no_secret(capsys):
    def fails() -> int:
        raise KrayError(f"cannot read https://me:{IN_ADDRESSES}@host with {PLANTED['HF_TOKEN']}")

    with pytest.raises(SystemExit):
        guarded(fails)
    assert capsys.readouterr().err == "error: cannot read https://me:***@host with ***\n"
