"""Whole training runs with real vLLM, FSDP, Ray and MLflow, at the smallest size."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from chat_models import chat_model
from tiny_runs import same_weights, wait_for_line

from kray.config import load_config
from kray.driver.remote import run_on_cluster
from kray.errors import KrayError
from kray.faults.compared import metrics
from kray.planner import Beliefs
from kray.train.checkpoints import newest_checkpoint, read_state

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k"


@pytest.mark.smoke
def test_online_plan_over_candidates_and_tokens(run_tiny, tmp_path):
    summary = run_tiny(
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
    lines = [line for line in metrics(tmp_path / "online") if line["step"] > 0]
    spent = np.diff([0, *(line["progress/tokens"] for line in lines)])
    assert spent[1:] == pytest.approx(170, rel=0.2)  # the first step knows no lengths; tiny groups vary
    assert max(line["prompts/longest_wait"] for line in lines) <= 2
    assert all(8 <= line["planner/admitted"] <= 12 for line in lines)


def test_overlapped_generation_bounds_staleness(run_tiny, tmp_path):
    """Checkpoints are written behind the training's back and know nothing of the steps that are collected ahead."""
    overlap = (
        "async.max_staleness=2",
        "train.tis=2",
        "evaluate.every=3",
        "run.checkpoint_every=2",
        "plan.candidates=1",
    )
    summary = run_tiny("run", *overlap, "run.steps=8", "run.keep_checkpoints=9", "rollout.max_response_tokens=40")
    assert (summary.steps, summary.rollouts) == (8, 8 * 48)
    lines = [line for line in metrics(tmp_path / "run") if line["step"] > 0]
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
    more = run_tiny("run", *overlap, "run.steps=10", checkpoint=newest_checkpoint(tmp_path / "run"))
    assert more.rollouts == 10 * 48


def test_killed_engine_loses_no_rollout(run_tiny, tmp_path, capsys):
    """Two engines that take adapters, two learner ranks, the paper's plan; an engine is killed while it generates."""
    import ray

    killed = threading.Event()

    def kill():
        wait_for_line(tmp_path / "run/metrics.jsonl", 2)  # the evaluation before training, and step 1
        engine = ray.get_actor("kray-run-engine-0-0")
        os.kill(ray.get(engine.start.remote(), timeout=30)["pid"], signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    summary = run_tiny(
        "run",
        "rollout.engines=2",
        "train.ranks=2",
        "plan.mode=paper",
        "run.steps=10",
        "evaluate.every=0",
        "rollout.max_response_tokens=40",
        "rollout.split=4",
        "plan.budget=96",
        "model.lora.rank=4",
        "rollout.lora=adapter",
    )
    thread.join()
    assert killed.is_set()
    assert "MB of adapters; whole weights would be" in capsys.readouterr().out
    assert summary.engine_deaths == 1
    assert (summary.steps, summary.rollouts) == (10, 10 * 96)
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(11))
    assert all(line.get("reward/failed", 0) == 0 for line in lines)


def test_data_failures_quarantine_prompts_or_end_the_run(run_tiny, tmp_path):
    """Prompts whose answer ends in 0 or 5 have a reward that always fails; each epoch of 16 prompts takes two steps."""
    poison = ("reward.verifier=sample_verifiers:fails_on_fives", "prompts.quarantine_after=1", "plan.mode=uniform")
    summary = run_tiny("some", *poison, "evaluate.every=0", "run.max_failed_share=0.9")
    lines = [line for line in metrics(tmp_path / "some") if line["step"]]
    failed = [line["reward/failed"] for line in lines]
    assert sum(failed[:2]) == 6 * len(summary.left_out) > 0
    assert failed[2:] == [0, 0]
    assert lines[-1]["prompts/quarantined"] == len(summary.left_out) < 8
    assert summary.rollouts == 4 * 48 - sum(failed)  # uniform gives lost rollouts up; later the others get them all
    state = read_state(newest_checkpoint(tmp_path / "some"))
    assert state["quarantine"]["left_out"] == summary.left_out
    with pytest.raises(KrayError, match=r"run\.max_failed_share is 0\.01.*an odd digit.*ud800"):
        run_tiny("none", "reward.verifier=sample_verifiers:fails_on_odd", "run.max_failed_share=0.01")


def test_text_and_values_of_any_kind_end_no_run(run_tiny, tmp_path):
    """Details, errors and output of the verifier hold half characters and escapes; some values are beyond all ranges."""
    hostile = ("reward.verifier=sample_verifiers:hostile", "evaluate.every=1", "track.every=1", "track.traces=2")
    summary = run_tiny("run", *hostile, "run.steps=2", "run.max_failed_share=1.0", "prompts.quarantine_after=0")
    assert summary.steps == 2
    resumed = newest_checkpoint(tmp_path / "run")
    more = run_tiny("run", *hostile, "run.steps=3", "run.max_failed_share=1.0", checkpoint=resumed)
    assert more.steps == 3
    table = json.loads((tmp_path / "run/samples/step-000003.json").read_text(encoding="utf-8"))
    details = [dict(zip(table["columns"], row, strict=True))["detail"] for row in table["data"]]
    assert details
    assert all(detail.isprintable() and detail.endswith(r"\ud800\x00\x1b[1m\n") for detail in details)


@pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not at hand")
def test_chat_model_trains_on_gsm8k(ray_local, tmp_path):
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
    summary = run_on_cluster(config, str(model), tmp_path / "gsm8k", None, "run")
    assert summary.steps == 1
    assert summary.accuracy_after == 0.0
    rows = json.loads((tmp_path / "gsm8k/metrics.jsonl").read_text().splitlines()[-1])
    assert rows["train/skipped"] == 0  # all rewards are 0, less than was expected
    table = json.loads((tmp_path / "gsm8k/samples/step-000001.json").read_text())
    for row in (dict(zip(table["columns"], values, strict=True)) for values in table["data"]):
        start = (
            f"«<|im_start|>»system\nBe brief.«<|im_end|>»\n«<|im_start|>»user\n{row['prompt']}\n\nThink step by step"
        )
        assert row["rendered_prompt"].startswith(start)
        assert row["rendered_prompt"].endswith("«<|im_end|>»\n«<|im_start|>»assistant\n")


def test_weights_by_buckets_change_nothing(run_tiny, tmp_path, wide_policy, capsys):
    """The same seed: in one piece through the object store, and in some four buckets of shared memory, from two ranks."""
    ranks = ("train.ranks=2", "run.steps=2", "run.checkpoint_every=2", "rollout.max_response_tokens=12")
    for folder, bucket_mib in (("one", 0), ("buckets", 1)):
        summary = run_tiny(folder, *ranks, f"rollout.sync_bucket_mib={bucket_mib}", policy=wide_policy)
        assert (summary.steps, summary.engine_deaths) == (2, 0)
    one, other = (tmp_path / folder for folder in ("one", "buckets"))
    assert metrics(one) == metrics(other)
    said = capsys.readouterr().out
    assert said.count("new weights go in buckets of 1 MiB to 1 of the engines") == 1
    assert "from the object store" not in said
    tables = [sorted((folder / "samples").glob("*.json")) for folder in (one, other)]
    assert tables[0]
    assert [file.read_text() for file in tables[0]] == [file.read_text() for file in tables[1]]
    assert same_weights(newest_checkpoint(one), newest_checkpoint(other))
