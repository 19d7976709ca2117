"""Jobs on a folder in which another one works: refused with one message, before anything is started or touched."""

from __future__ import annotations

import json

import pytest
from checked_runs import QUICK, checkpoint
from inline_jobs import ROOT, run_job

from kray.cluster.folder_lock import FolderLock
from kray.config import load_config
from kray.driver.run_lock import lock_folder
from kray.launch import train as launched
from kray.launch.saved import saved_report


def held(path, beside=False) -> FolderLock:
    return FolderLock.acquire(path, "the first job", beside=beside)


def refused(done, path) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"config error: {path} is in use by ")
    assert "the first job" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def run(tmp_path):
    """Make a run folder with one checkpoint, as a run of configs/tiny.yaml leaves it."""
    return checkpoint(tmp_path / "tiny-20261129-120000", load_config(QUICK, []), "digest")


@pytest.mark.parametrize("how", ["auto", "folder"])
def test_a_run_that_goes_on_is_not_resumed(tmp_path, run, how):
    """Its unfinished checkpoint stays, and the newest one, which is damaged, is not set aside."""
    (run / "checkpoints/.tmp-step-000006").mkdir()
    (run / "checkpoints/step-000003/files.json").write_text(json.dumps({"learner/x": [1, 1]}))
    before = sorted(run.rglob("*"))
    with held(run):
        done = run_job("train", "--config", QUICK, f"run.dir={tmp_path}", f"resume={'auto' if how == 'auto' else run}")
    refused(done, run)
    assert [file for file in sorted(run.rglob("*")) if ".lock" not in file.parts] == before


def test_a_comparison_is_not_carried_out_twice_at_once(tmp_path):
    folder = tmp_path / "study"
    with held(folder):
        refused(run_job("compare", str(ROOT / "configs/compare-quick.yaml"), "--dir", str(folder)), folder)
    assert [file.name for file in folder.iterdir()] == [".lock"]


def test_two_evaluations_do_not_write_one_file(tmp_path, run):
    file = tmp_path / "out.json"
    with held(file, beside=True):
        refused(run_job("evaluate", str(run), "--json", str(file)), file)
    assert not file.exists()


def test_two_exports_do_not_write_one_folder(tmp_path, run):
    for out, adapters in ((tmp_path / "model", ""), (tmp_path / "other", tmp_path / "adapters")):
        target = adapters or out
        with held(target, beside=True):
            more = ["--adapters", str(adapters)] if adapters else []
            refused(run_job("export", str(run), str(out), *more), target)
        assert not out.exists()
    assert not list(tmp_path.glob(".lock-*"))


def test_two_planner_services_do_not_share_their_state(tmp_path, monkeypatch):
    monkeypatch.setenv("KRAY_API_KEY", "k" * 40)
    with held(tmp_path / "beliefs"):
        refused(run_job("serve", "planner", "--state", str(tmp_path / "beliefs")), tmp_path / "beliefs")


def test_the_checkpoint_is_chosen_when_the_run_before_has_ended(tmp_path, run):
    """It may save once more while the next job waits for its lock; a checkpoint that was named stays what it is."""
    old = run / "checkpoints/step-000003"
    newer = run / "checkpoints/step-000007"
    newer.mkdir()
    (newer / "state.json").write_text("{}")
    assert launched._newest_now(load_config(QUICK, ["resume=auto"]), old) == newer
    assert launched._newest_now(load_config(QUICK, [f"resume={run}"]), old) == newer
    assert launched._newest_now(load_config(QUICK, [f"resume={old}"]), old) == old


def test_a_ray_job_says_how_it_is_stopped(tmp_path, monkeypatch):
    described = {"metadata": {"job_submission_id": "kray-7"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(described))
    with lock_folder(tmp_path, "a training"), pytest.raises(Exception, match="save and end: ray job stop kray-7"):
        lock_folder(tmp_path, "a training")


def test_what_is_saved_of_a_run_is_said_with_the_command_that_goes_on(tmp_path, run):
    state = json.loads((run / "checkpoints/step-000003/state.json").read_text())
    state |= {"rollouts": 1536, "elapsed_s": 420.0}
    (run / "checkpoints/step-000003/state.json").write_text(json.dumps(state))
    report = saved_report(run, 24)
    assert "saved                 step 3 of 24, 1,536 rollouts, 7 min in steps" in report
    assert f"python jobs/train.py --config {run}/config.yaml resume={run}" in report
    (run / "checkpoints/step-000003/state.json").write_text("half of")
    assert "step 3 of 24\n" in saved_report(run, 24)
    assert "nothing: there was no checkpoint yet" in saved_report(tmp_path / "none", 24)


@pytest.mark.parametrize("lost", [True, False])
def test_a_failed_run_says_what_is_saved_unless_it_is_anothers_now(run, lost, capsys):
    from kray.cluster.folder_lock import LostLock
    from kray.errors import KrayError

    kind = LostLock if lost else KrayError
    with pytest.raises(kind) as failed, launched._saying_what_is_saved(run, load_config(QUICK, [])):
        raise kind("it failed")
    assert ("resume=" in str(failed.value)) is not lost
    with pytest.raises(KeyboardInterrupt), launched._saying_what_is_saved(run, load_config(QUICK, [])):
        raise KeyboardInterrupt
    assert "resume=" in capsys.readouterr().out
