"""A whole comparison with real engines, at the smallest size: it runs, reports and resumes, and its runs are independent."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from pathlib import Path

import pytest
import ray
from logged_lines import logged_lines
from tiny_runs import wait_for_line

from kray.compare.study import RATES, VISITS, load_study
from kray.compare.supervision import run_comparison
from kray.driver.run_lock import lock_folder
from kray.faults.compared import repeatable_lines
from kray.train.start_model import find_model

ROOT = Path(__file__).parents[3]
QUICK = str(ROOT / "configs" / "compare-quick.yaml")


@pytest.fixture
def compare(ray_local, tmp_path, monkeypatch):
    """Run a part of the quick comparison into a folder and return its Outcome."""
    monkeypatch.setenv("KRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(folder: str, methods: str, seeds: str):
        study = load_study(QUICK, methods, seeds, str(tmp_path / folder))
        with lock_folder(study.folder, "a comparison") as lock:
            return run_comparison(study, find_model(study.base), None, lock)

    return run


@contextlib.contextmanager
def polled_status(name: str):
    """Collect the status of the driver whose name begins so, polled from another thread."""
    told, done = [], threading.Event()

    def ask() -> None:
        while not done.wait(0.2):
            for one in ray.util.list_named_actors(all_namespaces=True):
                if one["name"].startswith(name):
                    with contextlib.suppress(ray.exceptions.RayError, ValueError):  # it is gone
                        actor = ray.get_actor(one["name"], namespace="kray")
                        told.append(ray.get(actor.status.remote(), timeout=10))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        yield told
    finally:
        done.set()
        asking.join(20)


def steps_of(folder: Path) -> list[dict]:
    """Return the lines of a run's files without what depends on the clock or on runs before it."""
    return [line for name in ("metrics.jsonl", VISITS, RATES) for line in repeatable_lines(folder / name)]


def kill_driver(file: Path) -> None:
    """Kill the driver when the run has recorded its first step."""
    from kray.faults.targets import actors

    wait_for_line(file, 2, 200.0)
    (driver,) = actors("kray-all-driver")
    assert driver.send(signal.SIGKILL)


def test_comparison_reports_resumes_and_isolates_its_runs(compare, tmp_path, capsys):
    from mlflow import MlflowClient

    with polled_status("kray-all-driver") as told:
        ended = compare("all", "", "0")
    assert {"1/3", "2/3", "3/3"} == {status["part"].split(",")[0] for status in told if status["part"]}
    assert {status["step"] for status in told if status["part"]} > {0}
    assert (ended.done, ended.of, ended.stopped) == (3, 3, "")
    page = Path(ended.page).read_text()
    assert page.count("<img") >= 9
    assert all(method in page for method in ("uniform", "kray", "exact_p"))
    assert "nothing here has an interval" in page
    assert {verdict["outcome"] for verdict in ended.verdicts} == {"undecided", "not measured"}
    origin = json.loads((tmp_path / "all/uniform/seed-0/done.json").read_text())["origin"]
    assert all(origin[key] for key in ("policy", "prompts")), "what the children began from is not kept"
    text = Path(ended.page).with_name("results.json").read_text()
    numbers = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["methods"]
    assert numbers["uniform"]["difference"]["high"] is None
    assert all(numbers[method]["rollouts"] == 3 * 96 for method in numbers)
    assert 0 < numbers["uniform"]["start"] < 1
    visits = [json.loads(line) for line in (tmp_path / "all/exact_p/seed-0" / VISITS).read_text().splitlines()]
    known = [(p, n) for line in visits for p, n in zip(line["p"], line["budgets"], strict=True)]
    assert max(known, key=lambda pair: pair[0] * (1 - pair[0]) ** 2)[1] > 6  # over the mean: the plan knew the rates

    client = MlflowClient(f"sqlite:///{tmp_path}/all/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in runs if run not in parents} == {parents[0].info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert "report/index.html" in {file.path for file in client.list_artifacts(parents[0].info.run_id, "report")}

    # the third child again, now as the first one, whose driver is killed once; the others are taken as done
    (tmp_path / "all/exact_p").rename(tmp_path / "third")
    before = (tmp_path / "all/uniform/seed-0/metrics.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    killer = threading.Thread(target=kill_driver, args=(tmp_path / "all/exact_p/seed-0/metrics.jsonl",))
    killer.start()
    with logged_lines() as lines:
        again = compare("all", "", "0")
    killer.join()
    assert (again.done, again.failed) == (3, {})
    assert "2 done, 1 to run" in capsys.readouterr().out
    assert any("starting another driver; exact_p seed 0 begins anew" in line for line in lines)
    assert (tmp_path / "all/uniform/seed-0/metrics.jsonl").stat().st_mtime_ns == before
    assert steps_of(tmp_path / "all/exact_p/seed-0") == steps_of(tmp_path / "third/seed-0")
    states = [run.info.status for run in client.search_runs([e.experiment_id for e in client.search_experiments()])]
    assert sorted(states) == ["FAILED", *["FINISHED"] * 5], "the run that was lost is not marked as failed"
