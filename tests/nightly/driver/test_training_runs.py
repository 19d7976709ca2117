"""Whole runs of more than a minute: resumed and stopped runs end as uninterrupted ones."""

from __future__ import annotations

import json
import os
import signal
import threading

import numpy as np
import pytest
from tiny_runs import same_weights, wait_for_line

from kray.faults.compared import metrics
from kray.metrics import documented
from kray.simulate.populations import find_population
from kray.train.checkpoints import newest_checkpoint, read_state


def test_resumed_run_equals_uninterrupted_run(run_tiny, straight_run, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    summary, undisturbed = straight_run
    assert (summary.steps, summary.rollouts, summary.stopped) == (4, 4 * 48, "")
    assert summary.accuracy_after > summary.accuracy_before
    # the same run again, but ended after two steps and gone on from its checkpoint
    run_tiny("broken", "run.steps=2")
    checkpoint = newest_checkpoint(tmp_path / "broken")
    run_tiny("broken", checkpoint=checkpoint)
    straight, broken = metrics(undisturbed), metrics(tmp_path / "broken")
    assert [line["step"] for line in straight] == [line["step"] for line in broken] == [0, 1, 2, 3, 4]
    assert straight == broken
    assert {name for line in straight for name in line if name != "step" and not documented(name)} == set()
    ends = [newest_checkpoint(folder) for folder in (undisturbed, tmp_path / "broken")]
    assert read_state(ends[0])["planner"] == read_state(ends[1])["planner"]
    assert same_weights(*ends)

    client = MlflowClient(f"sqlite:///{undisturbed}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert run.data.params["plan.budget"] == "48"
    assert {"git_commit", "ray_job_id", "version.vllm", "version.torch"} <= set(run.data.tags)
    history = client.get_metric_history(run.info.run_id, "group/effective_ratio_prompts")
    assert [point.step for point in history] == [1, 2, 3, 4]
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} >= {
        "config.yaml",
        "samples",
        "figures",
    }
    assert {one.dataset.name for one in run.inputs.dataset_inputs} == {"train", "test"}
    rows = json.loads((undisturbed / "samples/step-000002.json").read_text())
    assert {"prompt", "response", "reward", "belief", "budget"} <= set(rows["columns"])
    assert len(rows["data"]) == 4

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{undisturbed}/mlflow.db")
    population = find_population(f"mlflow:{run.info.run_id}")(100, np.random.default_rng(0))
    assert population.shape == (100,)
    assert 0 < population.mean() < 1

    judged = run_tiny("judged", checkpoint=newest_checkpoint(undisturbed), method="judge")
    assert judged.accuracy == pytest.approx(summary.accuracy_after)  # the same seed on the same policy
    assert judged.prompts == 12


def test_stopped_run_with_fitted_priors_resumes_exactly(run_tiny, tmp_path):
    """Fitted features and discounts are restored to the last digit."""
    learned = (
        "plan.prior_features=true",
        "plan.fit_discount=true",
        "plan.prior_by=kind",
        "plan.refit_every=3",
        "plan.budget=128",
        "plan.candidates=1.5",
        "prompts.per_step=32",
        "prompts.train.size=192",
        "reward.verifier=sample_verifiers:harder_for_long",
        "evaluate.every=0",
        "run.checkpoint_every=0",
        "run.steps=10",
        "track.every=4",
    )

    def stop():
        wait_for_line(tmp_path / "broken/metrics.jsonl", 5)
        os.kill(os.getpid(), signal.SIGTERM)

    run_tiny("straight", *learned)
    thread = threading.Thread(target=stop)
    thread.start()
    summary = run_tiny("broken", *learned)
    thread.join()
    assert summary.stopped == "by SIGTERM"
    assert 0 < summary.steps < 10
    # No other step was to be saved.
    saved = newest_checkpoint(tmp_path / "broken")
    assert read_state(saved)["step"] == summary.steps
    more = run_tiny("broken", *learned, checkpoint=saved)
    assert (more.steps, more.rollouts) == (10, 10 * 128)
    straight, broken = (metrics(tmp_path / name) for name in ("straight", "broken"))
    assert [line["step"] for line in straight] == list(range(11))
    assert straight == broken
    one, other = (read_state(newest_checkpoint(tmp_path / name)) for name in ("straight", "broken"))
    assert one["planner"]["features"]["rows"]
    for name in ("planner", "waiting", "transitions", "calibration", "lengths"):
        assert one[name] == other[name]
    assert same_weights(*(newest_checkpoint(tmp_path / name) for name in ("straight", "broken")))
    tables = [sorted((tmp_path / name / "transitions").iterdir()) for name in ("straight", "broken")]
    assert [file.read_text() for file in tables[0]] == [file.read_text() for file in tables[1]]
