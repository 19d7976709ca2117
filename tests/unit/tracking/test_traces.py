"""Rollouts as traces, and evaluations as runs, in a real MLflow store."""

from __future__ import annotations

import json

import pytest
from hostile_text import HOSTILE

from kray.config import KrayConfig, TrackConfig
from kray.driver.evaluation import Evaluation
from kray.driver.evaluation_record import EvaluationRecord, table
from kray.records import Prompt
from kray.rollout.outcome import Failure
from kray.text import legible
from kray.tracking import Tracker

# Columns that policies, verifiers and data fill.
TEXTS = ("prompt_id", "prompt", "rendered_prompt", "response", "answer", "detail")

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


def test_text_of_any_kind_reaches_the_store(tmp_path):
    """Half characters in a detail ended runs, also those that were resumed."""
    short = [text for text in HOSTILE if len(text) < 100]
    params = {f"key{number}": text for number, text in enumerate(short)}
    tags = {f"tag{number}": text for number, text in enumerate(HOSTILE)}
    tracker = Tracker(
        TrackConfig(system_metrics=False), tmp_path, "traced", params, tags, f"run: {{name: '{HOSTILE[1]}'}}\n"
    )
    rows = [ROWS[0] | dict.fromkeys(TEXTS, text) for text in HOSTILE]
    prompts = [Prompt(f"p{text}", text, "exact", text, text=text) for text in HOSTILE]
    tracker.log_step(1, {"reward/mean": 0.5})
    tracker.log_table(1, rows)
    tracker.log_traces(1, rows, generate_s=2.0, judge_s=0.5, ago_s=1.0)
    tracker.log_dataset("train", prompts, "train")
    assert tracker.finish() == []
    table = json.loads((tmp_path / "samples/step-000001.json").read_text(encoding="utf-8"))
    shown = [dict(zip(table["columns"], row, strict=True))["detail"] for row in table["data"]]
    assert shown == [legible(text) for text in HOSTILE]
    run = client_of(tmp_path).get_run(tracker.mlflow_run_id)
    assert [run.data.params[key] for key in params] == [legible(text) for text in short]
    assert [run.data.tags[key] for key in tags] == [legible(text)[:8000] for text in HOSTILE]
    traces = client_of(tmp_path).search_traces(
        locations=[run.info.experiment_id], run_id=run.info.run_id, max_results=50
    )
    assert len(traces) == len(HOSTILE)


def test_an_evaluation_without_figures_is_recorded_as_such(tmp_path):
    nan = float("nan")
    failures = [Failure("p0", 4, f"environment: {HOSTILE[1]}")]
    nothing = Evaluation(0, 2, nan, nan, None, {}, nan, failures, {}, {}, [])
    assert table(nothing) == (
        "nothing judged    no response could be scored, 4 were lost, the first of prompt p0: environment: \\ud800"
    )
    rows = [{"id": "p0", "response": HOSTILE[1]}, {"id": "p1", "response": "2", "greedy_response": "3"}]
    one = Evaluation(1, 2, 0.5, nan, 0.6, {}, 3.0, failures, {HOSTILE[1]: (1, 0.5)}, {}, rows)
    assert "accuracy          0.5000 (95 % over prompts)" in table(one)
    assert set(one.metrics()) == {"eval/accuracy", "eval/failed", "eval/mean_length", "eval/greedy_accuracy"}
    config = KrayConfig()
    config.track.uri = f"sqlite:///{tmp_path}/all.db"
    recorder = EvaluationRecord.of(config, None, "some/model")
    for evaluation in (nothing, one):
        assert "mlflow ui" in recorder.record(evaluation, {"note": HOSTILE[1]})
