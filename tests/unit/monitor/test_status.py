"""A run's status: from the driver, from the folder, and where there is nothing to see."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from rich.console import Console

from kray.config import KrayConfig, to_yaml
from kray.driver.recorder import StepRecorder
from kray.errors import KrayError
from kray.monitor.client import RunMonitor, read_driver_address
from kray.monitor.live import LiveStatus
from kray.monitor.status import from_folder, histogram, newest_runs
from kray.monitor.view import render
from kray.rollout.health import State
from kray.rollout.scheduler import Schedule

ROOT = Path(__file__).parents[3]
STEP = {
    "timing_s/step": 2.0, "timing_s/idle": 0.5, "timing_s/generate": 1.0, "reward/mean": 0.4, "budget/max": 16.0,
    "group/effective_ratio_prompts": 0.5, "group/effective_ratio_rollouts": 0.7, "throughput/rollouts_per_s": 24.0,
    "throughput/tokens_per_s": 2400.0, "progress/rollouts": 96.0, "progress/tokens": 9600.0,
}  # fmt: skip


def make_run(base: Path, name: str, steps: int, of: int = 10) -> Path:
    """A folder as a run leaves it."""
    config = KrayConfig()
    config.run.steps = of
    folder = base / name
    (folder / "checkpoints/step-000002").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    lines = [{"step": 0, "time": 100.0, "eval/accuracy": 0.25}]
    lines += [{"step": i, "time": 100.0 + i, **STEP} for i in range(1, steps + 1)]
    lines[-1]["eval/accuracy"] = 0.5
    torn = '{"step": 99, "ti'
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    return folder


def text_of(found: dict) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(found))
    return console.export_text()


def test_status_from_a_folder(tmp_path):
    found = from_folder(make_run(tmp_path, "a", 4))
    assert (found["step"], found["steps"], found["live"]) == (4, 10, False)
    assert found["left_s"] == 12.0
    assert found["accuracies"] == [[0, 0.25], [4, 0.5]]
    assert found["idle"] == 0.25
    assert found["saved"] == ["step-000002"]
    json.dumps(found)
    shown = text_of(found)
    for text in ("step 4 of 10 (40%)", "24 rollouts/s", "0.500 after step 4", "0.250 after step 0", "12 s left"):
        assert text in shown
    assert from_folder(make_run(tmp_path, "b", 10))["state"] == "finished"


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(KrayError, match=r"holds no metrics\.jsonl"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ([], []),
        ([2, 2, 3, 4, 5], [["2", 2], ["3-4", 2], ["5-8", 1]]),
        ([0, 1, 9], [["0", 1], ["1", 1], ["2", 0], ["3-4", 0], ["5-8", 0], ["9-16", 1]]),
        ([128, 129], [["65-128", 1], ["129-256", 1]]),
    ],
)
def test_histogram_classes_are_powers_of_two(budgets, expected):
    assert histogram(np.array(budgets, dtype=np.int64)) == expected


def make_training(busy_s: float = 0.0):
    schedule = Schedule(1)
    schedule.engine_up("engine-0", 8)
    health = SimpleNamespace(state=State.SERVING, serving=True, version=3, restarts=1, reason="it was killed")
    engine = SimpleNamespace(name="engine-0", health=health, busy_s=busy_s, up_s=0.0, up_since=0.0, tokens=5)
    pool = SimpleNamespace(engines=[engine], schedule=schedule, preemptions=2)
    config = KrayConfig()
    recorder = StepRecorder(config, None, None)
    recorder.steps.extend([STEP] * 3)
    recorder.budgets = np.array([2, 4])
    return SimpleNamespace(
        config=config,
        state=SimpleNamespace(step=3, rollouts=96, tokens=960),
        workers=SimpleNamespace(pool=pool, ready=True, scorer=None),
        recorder=recorder,
        stop=SimpleNamespace(reason=""),
        tracker=SimpleNamespace(open_command="mlflow ui"),
    )


def test_live_status_shows_engines_and_remaining_time(tmp_path, monkeypatch):
    live = LiveStatus(KrayConfig(), tmp_path / "run")
    monkeypatch.setattr(live._exporter, "step", lambda *_: None)
    assert live.status()["state"] == "starting"
    assert "step 0 of" in text_of(json.loads(json.dumps(live.status())))
    training = make_training()
    live.begin(training, tmp_path / "run")
    live.record(0, {"eval/accuracy": 0.1})
    live.record(3, STEP | {"eval/accuracy": 0.2})
    live._samples += [{"engine-0": (10.0, 100.0)}, {"engine-0": (15.0, 120.0)}]
    found = live.status()
    assert found["left_s"] == 2.0 * 97
    assert found["budgets"] == [["2", 1], ["3-4", 1]]
    (engine,) = found["engines"]
    assert (engine["state"], engine["idle"], engine["restarts"], found["preemptions"]) == ("serving", 0.75, 1, 2)
    json.dumps(found)
    assert {"engine-0", "serving", "75%"} <= set(text_of(found).split())
    live.begin(training, tmp_path / "run", "2/36")
    assert "part 2/36" in text_of(live.status())
    training.stop.reason = "by SIGINT"
    assert live.status()["state"] == "stopping"


class Client:
    """In place of a DriverClient: a Ray in which the named drivers run."""

    drivers: ClassVar[dict[str, dict]] = {}

    def __init__(self, address, auth):
        if address == "nowhere:1":
            raise KrayError("Ray at nowhere:1 cannot be reached")

    def driver_names(self, folder=None):
        return [name for name in self.drivers if folder is None or folder.name in name]

    def status(self, name):
        if not self.drivers[name]:
            raise KrayError(f"{name} is gone")
        return self.drivers[name]

    def close(self):
        pass


def test_the_folder_is_read_when_the_driver_does_not_answer(tmp_path, monkeypatch):
    folder = make_run(tmp_path, "a", 4)
    monkeypatch.setattr(Client, "drivers", {"kray-a-driver-1": {"folder": str(folder), "live": True, "step": 7}})
    monitor = RunMonitor("", tmp_path, "somewhere:1", Client)
    assert monitor.status()["step"] == 7
    Client.drivers["kray-a-driver-1"] = {}
    found = monitor.status()
    assert (found["live"], found["step"], found["said"]) == (False, 4, "kray-a-driver-1 is gone")


def test_poll_follows_a_restarted_driver_to_the_end(tmp_path, monkeypatch):
    folder = make_run(tmp_path, "a", 4)
    first, second = ({"folder": str(folder), "live": True, "state": "running", "step": step} for step in (7, 9))
    monkeypatch.setattr(Client, "drivers", {"kray-a-driver-1": first})
    statuses = RunMonitor("", tmp_path, "somewhere:1", Client).poll(0.0)
    assert next(statuses)["step"] == 7
    Client.drivers["kray-a-driver-1"] = {}
    monkeypatch.setattr(RunMonitor, "expects_driver", True)  # a driver that died, not a run that ended
    assert (next(statuses)["live"], next(statuses)["live"]) == (False, False)
    Client.drivers["kray-a-driver-2"] = second
    assert next(statuses)["step"] == 9
    Client.drivers["kray-a-driver-2"] = {}
    monkeypatch.setattr(RunMonitor, "expects_driver", False)
    assert next(statuses)["live"] is False
    assert list(statuses) == []


def test_the_newest_run_is_shown_without_a_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(Client, "drivers", {})
    for age, name in enumerate(("old", "new")):
        folder = make_run(tmp_path, name, 4 + age)
        os.utime(folder / "metrics.jsonl", (1000 + age, 1000 + age))
    assert [folder.name for folder in newest_runs(tmp_path)] == ["new", "old"]
    assert RunMonitor("", tmp_path, "", Client).status()["step"] == 5
    assert RunMonitor("old", tmp_path, "", Client).status()["step"] == 4
    assert "cannot be reached" in RunMonitor("", tmp_path, "nowhere:1", Client).status()["said"]
    (tmp_path / "new/driver.json").write_text(json.dumps({"ray": "127.0.0.1:1"}))  # of a driver that died
    assert read_driver_address(tmp_path / "new") == ("", "")
    assert RunMonitor("", tmp_path, "", Client).status()["step"] == 5
    with pytest.raises(KrayError, match="gone is neither a folder nor a run"):
        RunMonitor("gone", tmp_path, "", Client)


def test_the_job_reports_that_there_is_no_run(tmp_path):
    def job(*arguments: str) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        command = [sys.executable, "jobs/status.py", "--dir", str(tmp_path), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment)

    empty = job()
    assert empty.returncode == 1
    assert "no run is under way" in empty.stderr
    assert "Traceback" not in empty.stderr
    make_run(tmp_path, "a", 4)
    # It does not run, so that it is read once.
    told = job("--json", "--watch")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["step"] == 4
