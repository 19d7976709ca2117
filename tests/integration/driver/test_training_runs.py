"""True end-to-end stories: real vLLM, FSDP, Ray and MLflow, at the smallest size."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from chat_models import chat_model

from kray.config import load_config
from kray.driver.remote import drive
from kray.errors import KrayError
from kray.metrics import documented
from kray.planner import Beliefs
from kray.simulate.populations import find_population
from kray.train.checkpoints import newest, read_state

pytestmark = pytest.mark.slow

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k"
CONFIG = """
run: {name: story, steps: 4, checkpoint_every: 2, keep_checkpoints: 4}
prompts:
  per_step: 8
  max_tokens: 24
  train: {kind: arithmetic, size: 16}
  test: {kind: arithmetic, split: test, size: 12}
plan: {budget: 48, upper: 16}
rollout: {max_response_tokens: 6, max_sequences: 32, kv_cache_gib: 0.05, start_timeout_s: 180}
reward: {verifier: "sample_verifiers:first_is_even"}
train: {lr: 1.0e-3}
evaluate: {every: 2, samples: 2}
track: {every: 2, samples: 4, system_metrics: false}
"""


@pytest.fixture
def story(ray_local, warm_policy, tmp_path):
    """Runs the configuration with overrides in a folder; returns its Summary, or Evaluation for method="judge"."""

    def run(folder: str = "run", *overrides: str, checkpoint: Path | None = None, method: str = "run"):
        file = tmp_path / "story.yaml"
        file.write_text(CONFIG)
        config = load_config(str(file), [f"model.path={warm_policy}", f"run.dir={tmp_path}", *overrides])
        return drive(config, str(warm_policy), tmp_path / folder, checkpoint, method)

    return run


def steps_of(folder: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock or the machine."""
    clocked = (
        "time",
        "timing_s/",
        "memory/",
        "throughput/",
        "pool/",
        "train/update_s",
        "train/peak",
        "planner/seconds",
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(clocked)} for line in lines]


def wait_for_line(file: Path, number: int, limit_s: float = 120.0) -> None:
    """Returns when the file has that many lines."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if file.exists() and len(file.read_text().splitlines()) >= number:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{file} did not get {number} lines")


@pytest.mark.long
def test_a_run_learns_records_itself_and_resumes_as_if_it_had_never_ended(story, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    summary = story("straight")
    assert (summary.steps, summary.rollouts, summary.stopped) == (4, 4 * 48, "")
    assert summary.accuracy_after > summary.accuracy_before
    # the same run again, but ended after two steps and gone on from its checkpoint
    story("broken", "run.steps=2")
    checkpoint = newest(tmp_path / "broken")
    story("broken", checkpoint=checkpoint)
    straight, broken = (steps_of(tmp_path / name) for name in ("straight", "broken"))
    assert [line["step"] for line in straight] == [line["step"] for line in broken] == [0, 1, 2, 3, 4]
    assert straight == broken
    assert {name for line in straight for name in line if name != "step" and not documented(name)} == set()
    ends = [read_state(newest(tmp_path / name)) for name in ("straight", "broken")]
    assert ends[0]["planner"] == ends[1]["planner"]
    assert same_weights(*(newest(tmp_path / name) for name in ("straight", "broken")))

    client = MlflowClient(f"sqlite:///{tmp_path}/straight/mlflow.db")
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
    rows = json.loads((tmp_path / "straight/samples/step-000002.json").read_text())
    assert {"prompt", "response", "reward", "belief", "budget"} <= set(rows["columns"])
    assert len(rows["data"]) == 4

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/straight/mlflow.db")
    population = find_population(f"mlflow:{run.info.run_id}")(100, np.random.default_rng(0))
    assert population.shape == (100,)
    assert 0 < population.mean() < 1

    judged = story("judged", checkpoint=newest(tmp_path / "straight"), method="judge")
    assert judged.accuracy == pytest.approx(summary.accuracy_after)  # the same seed on the same policy
    assert judged.prompts == 12


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same learner, bit for bit."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    states = []
    for checkpoint in (one, other):
        flat = checkpoint / "flat.pt"
        dcp_to_torch_save(checkpoint / "learner", flat)
        states.append(torch.load(flat, weights_only=False))
    tensors = [{name: value for name, value in state.items() if isinstance(value, torch.Tensor)} for state in states]
    assert len(tensors[0]) > 20
    return tensors[0].keys() == tensors[1].keys() and all(
        torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0]
    )


def test_a_step_is_planned_while_it_runs_among_more_prompts_than_it_needs_and_in_tokens(story, tmp_path):
    summary = story(
        "online",
        "plan.mode=online",
        "plan.unit=tokens",
        "plan.token_budget=170",
        "plan.candidates=1.5",
        "plan.in_flight=16",
        "plan.prior_by=kind",
        "plan.max_wait=2",
        "evaluate.every=0",
    )
    assert summary.steps == 4
    lines = [line for line in steps_of(tmp_path / "online") if line["step"] > 0]
    spent = np.diff([0, *(line["progress/tokens"] for line in lines)])
    assert spent[1:] == pytest.approx(170, rel=0.2)  # the first step knows no lengths; tiny groups vary
    assert max(line["prompts/longest_wait"] for line in lines) <= 2
    assert all(8 <= line["planner/admitted"] <= 12 for line in lines)


def test_generation_goes_on_while_the_learner_updates_and_no_token_is_too_old(story, tmp_path):
    """Checkpoints are written behind the training's back and know nothing of the steps that are collected ahead."""
    overlap = (
        "async.max_staleness=2",
        "train.tis=2",
        "evaluate.every=3",
        "run.checkpoint_every=2",
        "plan.candidates=1",
    )
    summary = story("run", *overlap, "run.steps=8", "run.keep_checkpoints=9", "rollout.max_response_tokens=40")
    assert (summary.steps, summary.rollouts) == (8, 8 * 48)
    lines = [line for line in steps_of(tmp_path / "run") if line["step"] > 0]
    oldest = [line["staleness/max"] for line in lines]
    assert max(oldest) > 0, "nothing was generated ahead"
    assert max(oldest) <= 2
    assert all(line["staleness/dropped_groups"] == 0 for line in lines)
    assert all(line["train/skipped"] == 0 for line in lines)
    for step in (2, 4, 6, 8):
        state = read_state(tmp_path / f"run/checkpoints/step-{step:06d}")
        visits = Beliefs.from_dict(state["planner"]["beliefs"]).visits([f"arithmetic/train/{i}" for i in range(16)])
        assert state["step"] == step
        assert visits.sum() == 8 * step, "the checkpoint knows labels of later steps, or lacks some"
    more = story("run", *overlap, "run.steps=10", checkpoint=newest(tmp_path / "run"))
    assert more.rollouts == 10 * 48


def test_an_engine_killed_in_the_middle_of_a_run_loses_nothing(story, tmp_path):
    """Two engines, two learner ranks, the paper's plan; an engine is killed while it generates."""
    import ray

    killed = threading.Event()

    def kill():
        wait_for_line(tmp_path / "run/metrics.jsonl", 2)  # the evaluation before training, and step 1
        engine = ray.get_actor("kray-run-engine-0-0")
        os.kill(ray.get(engine.start.remote(), timeout=30)["pid"], signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    summary = story(
        "run",
        "rollout.engines=2",
        "train.ranks=2",
        "plan.mode=paper",
        "run.steps=10",
        "evaluate.every=0",
        "rollout.max_response_tokens=40",
        "rollout.split=4",
        "plan.budget=96",
    )
    thread.join()
    assert killed.is_set()
    assert summary.engine_deaths == 1
    assert (summary.steps, summary.rollouts) == (10, 10 * 96)
    lines = steps_of(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(11))
    assert all(line.get("reward/failed", 0) == 0 for line in lines)


def test_a_stopped_run_saves_what_it_completed_and_goes_on(story, tmp_path):
    def stop():
        wait_for_line(tmp_path / "run/metrics.jsonl", 4)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    summary = story("run", "run.steps=100000", "run.checkpoint_every=0", "evaluate.every=0")
    thread.join()
    assert summary.stopped == "by SIGTERM"
    assert 0 < summary.steps < 100000
    assert read_state(newest(tmp_path / "run"))["step"] == summary.steps
    more = story("run", f"run.steps={summary.steps + 2}", checkpoint=newest(tmp_path / "run"))
    assert more.steps == summary.steps + 2
    assert more.rollouts == more.steps * 48


@pytest.mark.long
def test_a_stopped_run_with_learned_priors_goes_on_exactly(story, tmp_path):
    """What is learned of features and of how labels go stale is carried through a stop to the last digit."""
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

    story("straight", *learned)
    thread = threading.Thread(target=stop)
    thread.start()
    summary = story("broken", *learned)
    thread.join()
    assert 0 < summary.steps < 10
    story("broken", *learned, checkpoint=newest(tmp_path / "broken"))
    straight, broken = (steps_of(tmp_path / name) for name in ("straight", "broken"))
    assert [line["step"] for line in straight] == list(range(11))
    assert straight == broken
    one, other = (read_state(newest(tmp_path / name)) for name in ("straight", "broken"))
    assert one["planner"]["features"]["rows"]
    for name in ("planner", "waiting", "transitions", "calibration", "lengths"):
        assert one[name] == other[name]
    assert same_weights(*(newest(tmp_path / name) for name in ("straight", "broken")))
    tables = [sorted((tmp_path / name / "transitions").iterdir()) for name in ("straight", "broken")]
    assert [file.read_text() for file in tables[0]] == [file.read_text() for file in tables[1]]


def test_data_failures_are_recorded_who_has_none_else_is_left_out_and_too_many_end_the_run(story, tmp_path):
    """Prompts whose answer ends in 0 or 5 have a reward that always fails; each epoch of 16 prompts takes two steps."""
    poison = ("reward.verifier=sample_verifiers:fails_on_fives", "prompts.quarantine_after=1", "plan.mode=uniform")
    summary = story("some", *poison, "evaluate.every=0", "run.max_failed_share=0.9")
    lines = [line for line in steps_of(tmp_path / "some") if line["step"]]
    failed = [line["reward/failed"] for line in lines]
    assert sum(failed[:2]) == 6 * len(summary.left_out) > 0
    assert failed[2:] == [0, 0]
    assert lines[-1]["prompts/quarantined"] == len(summary.left_out) < 8
    assert summary.rollouts == 4 * 48 - sum(failed)  # uniform gives lost rollouts up; later the others get them all
    state = read_state(newest(tmp_path / "some"))
    assert state["quarantine"]["left_out"] == summary.left_out
    with pytest.raises(KrayError, match=r"run\.max_failed_share is 0\.01.*an odd digit"):
        story("none", "reward.verifier=sample_verifiers:fails_on_odd", "run.max_failed_share=0.01")


@pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not at hand")
def test_a_chat_model_trains_on_gsm8k(ray_local, tmp_path):
    """configs/gsm8k.yaml on real problems, with a chat model too small to solve one: the path is what is tested."""
    model = chat_model(tmp_path / "model")
    config = load_config(
        "configs/gsm8k.yaml",
        [
            f"model.path={model}",
            f"run.dir={tmp_path}",
            "run.steps=1",
            "model.dtype=float32",
            "prompts.per_step=4",
            "plan.budget=8",
            "plan.candidates=1",
            "prompts.train.kind=jsonl",
            f"prompts.train.path={GSM8K}/train.jsonl",
            "prompts.test.kind=jsonl",
            f"prompts.test.path={GSM8K}/test.jsonl",
            "prompts.train.limit=30",
            "prompts.test.limit=4",
            "rollout.max_response_tokens=8",
            "rollout.engines=1",
            "rollout.gpus_per_engine=0",
            "train.gpus_per_rank=0",
            "train.ranks=1",
            "rollout.kv_cache_gib=0.2",
            "rollout.max_sequences=16",
            "evaluate.samples=1",
            "prompts.max_tokens=600",
            "prompts.train.system=Be brief.",
            "track.every=1",
        ],
    )
    summary = drive(config, str(model), tmp_path / "gsm8k", None, "run")
    assert summary.steps == 1
    assert summary.accuracy_after == 0.0
    rows = json.loads((tmp_path / "gsm8k/metrics.jsonl").read_text().splitlines()[-1])
    assert rows["train/skipped"] == 1  # no group was mixed
    table = json.loads((tmp_path / "gsm8k/samples/step-000001.json").read_text())
    for row in (dict(zip(table["columns"], values, strict=True)) for values in table["data"]):
        start = (
            f"«<|im_start|>»system\nBe brief.«<|im_end|>»\n«<|im_start|>»user\n{row['prompt']}\n\nThink step by step"
        )
        assert row["rendered_prompt"].startswith(start)
        assert row["rendered_prompt"].endswith("«<|im_end|>»\n«<|im_start|>»assistant\n")
