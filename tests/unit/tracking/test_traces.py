"""Rollouts as traces, and evaluations as runs, in a real MLflow store."""

from __future__ import annotations

import pytest

from kray.config import KrayConfig, TrackConfig
from kray.driver.evaluation import Evaluation
from kray.driver.evaluation_record import EvaluationRecord, table
from kray.tracking import Tracker

ROWS = [
    {
        "prompt_id": f"p{i}",
        "prompt": f"what is {i}?",
        "rendered_prompt": f"<user>what is {i}?<assistant>",
        "response": f"{i}",
        "answer": "0",
        "reward": float(not i),
        "detail": "wrong" if i else "",
        "belief": 0.5,
        "budget": 4,
        "group_success": 0.5,
        "tokens": 2,
        "finish": "stop",
    }
    for i in range(2)
]


@pytest.fixture(autouse=True)
def no_ambient_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def trained(tmp_path):
    """A finished run's folder and MLflow id."""
    tracker = Tracker(TrackConfig(system_metrics=False), tmp_path, "traced", {}, {}, "")
    tracker.log_step(10, {"reward/mean": 0.5})
    tracker.log_traces(10, ROWS, generate_s=2.0, judge_s=0.5, ago_s=1.0)
    tracker.log_traces(10, ROWS[:1], generate_s=2.0, judge_s=0.5, ago_s=1.0)  # delivered twice is there once
    assert tracker.finish() == []
    return tmp_path, tracker.mlflow_run_id


def client_of(folder):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def test_a_rollout_is_a_trace_of_its_run_with_its_reward(trained):
    folder, run_id = trained
    client = client_of(folder)
    experiment = client.get_run(run_id).info.experiment_id
    traces = {
        trace.info.tags["kray.prompt_id"]: trace
        for trace in client.search_traces(locations=[experiment], run_id=run_id)
    }
    assert sorted(traces) == ["p0", "p1"]
    for number, row in enumerate(ROWS):
        trace = traces[f"p{number}"]
        (feedback,) = trace.info.assessments
        assert (feedback.name, feedback.value) == ("reward", row["reward"])
        root, generate, judge = trace.data.spans
        assert (root.inputs, root.outputs) == (row["prompt"], row["response"])
        assert (generate.inputs, generate.outputs) == (row["rendered_prompt"], row["response"])
        assert {span.parent_id for span in (generate, judge)} == {root.span_id}
        assert judge.outputs == {"reward": row["reward"], "detail": row["detail"]}
        assert root.attributes["budget"] == 4
        assert generate.end_time_ns - generate.start_time_ns == pytest.approx(2.0e9, rel=1e-3)
        assert trace.info.execution_duration == pytest.approx(2500, abs=5)


def test_an_evaluation_is_a_run_under_the_one_that_it_judges(trained):
    folder, run_id = trained
    checkpoint = folder / "checkpoints/step-000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(f'{{"mlflow_run_id": "{run_id}", "step": 10}}')
    rows = [{"id": "p0", "prompt": "?", "answer": "1", "accuracy": 0.5, "response": "2"}]
    found = Evaluation(12, 2, 0.5, 0.1, 0.6, {1: 0.5, 2: 0.75}, 3.0, [], {"sum": (12, 0.5)}, {}, rows)
    recorder = EvaluationRecord.of(KrayConfig(), checkpoint, str(folder))
    assert recorder is not None
    assert "mlflow ui" in recorder.record(found, {"git_commit": "abc"})
    client = client_of(folder)
    runs = client.search_runs([client.get_run(run_id).info.experiment_id])
    (child,) = [run for run in runs if run.info.run_id != run_id]
    assert child.data.tags["mlflow.parentRunId"] == run_id
    assert child.data.tags["kray.kind"] == "evaluation"
    assert child.data.metrics["eval/pass_at_2"] == 0.75
    assert child.data.metrics["eval/greedy_accuracy"] == 0.6
    assert child.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(child.info.run_id, "evaluation")] == [
        "evaluation/step-000010.json"
    ]
    assert "pass@2            0.7500" in table(found)


def test_model_without_a_run_needs_a_named_store(tmp_path):
    config = KrayConfig()
    assert EvaluationRecord.of(config, None, "some/model") is None
    config.track.uri = f"sqlite:///{tmp_path}/all.db"
    recorder = EvaluationRecord.of(config, None, "some/model")
    assert recorder is not None
    assert (recorder.parent, recorder.step) == ("", 0)
