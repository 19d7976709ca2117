"""Whole runs on data and reward functions of other trainers, with the configurations that docs/other-trainers.md shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from doc_pages import blocks, read
from shipped_datasets import trl_rows, verifiers_rows, verl_rows, write_jsonl, write_parquet

from kray.config import load_config
from kray.driver.remote import run_on_cluster
from kray.launch.preflight import load_checked_prompts

PAGE = "docs/other-trainers.md"
SUMS = [(a, b) for a in range(1, 9) for b in range(1, 9)]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}="
SMALL = (
    "model.dtype=float32",
    "run.steps=2",
    "run.checkpoint_every=0",
    "prompts.per_step=8",
    "prompts.max_tokens=24",
    "plan.budget=32",
    "plan.upper=16",
    "rollout.max_response_tokens=6",
    "rollout.max_sequences=32",
    "rollout.kv_cache_gib=0.05",
    "evaluate.every=0",
    "evaluate.samples=2",
    "track.every=1",
    "track.samples=4",
    "track.system_metrics=false",
    "prompts.test.limit=8",
)


@pytest.fixture
def run_shown(ray_local, warm_policy, tmp_path, monkeypatch):
    """Run the configuration of a name that the page shows, in a folder with its functions; return (rows, table)."""
    shutil.copytree(warm_policy, tmp_path / "policy")
    (tmp_path / "policy/chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "rewards.py").write_text("\n\n".join(blocks(read(PAGE), "python")))
    monkeypatch.chdir(tmp_path)

    def run(name: str, *overrides: str):
        shown = next(block for block in blocks(read(PAGE), "yaml") if f"# {name}.yaml" in block)
        file = tmp_path / f"{name}.yaml"
        # Ray's workers have folders of their own.
        file.write_text(shown.replace("rewards.py:", f"{tmp_path}/rewards.py:"))
        policy = tmp_path / "policy"
        config = load_config(file, [f"model.path={policy}", f"run.dir={tmp_path}", *SMALL, *overrides])
        prompts = load_checked_prompts(config)
        assert len(prompts.of("train")) == len(SUMS)
        for source in (config.prompts.train, config.prompts.test):
            source.path = str(tmp_path / source.path)
        summary = run_on_cluster(config, str(policy), tmp_path / "run", None, "run")
        assert summary.steps == 2
        lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
        return lines, table_of(tmp_path / "run/samples/step-000002.json")

    return run


def table_of(file: Path) -> list[dict]:
    table = json.loads(file.read_text())
    return [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]


def test_verl_parquet_and_function(run_shown, tmp_path):
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", verl_rows(SUMS))
    lines, rows = run_shown("verl")
    assert [line["reward/failed"] for line in lines if "reward/failed" in line] == [0, 0]
    assert "eval/accuracy" in lines[0]
    for row in rows:
        assert row["detail"] == '{"source": "tiny/sums"}'
        assert row["reward"] == float(row["response"].strip().endswith(row["answer"]))


def test_weighted_functions_of_trl(run_shown, tmp_path):
    for part in ("train", "test"):
        write_jsonl(tmp_path / f"{part}.jsonl", trl_rows(SUMS))
    lines, rows = run_shown("trl")
    steps = [line for line in lines if "reward/mean" in line]
    assert len(steps) == 2
    for line in steps:
        assert line["reward/function_brief"] == 1.0
        expected = (line["reward/function_correct"] / 2 + 0.25 * line["reward/function_brief"]) / 1.25
        assert line["reward/mean"] == pytest.approx(expected)
    assert lines[0]["eval/accuracy"] == pytest.approx((lines[0]["eval/function_correct"] / 2 + 0.25) / 1.25)
    for row in rows:
        assert row["reward"] == pytest.approx((row["reward_correct"] / 2 + 0.25 * row["reward_brief"]) / 1.25)
    assert recorded(tmp_path / "run") >= {"reward/function_correct", "reward/function_brief", "eval/function_correct"}


def test_rubric_of_verifiers_and_a_verifier_of_the_test_set(run_shown, tmp_path):
    for part in ("train", "test"):
        write_jsonl(tmp_path / f"{part}.jsonl", verifiers_rows(SUMS))
    lines, rows = run_shown("rubric", "prompts.test.verifier=exact")
    # Responses that are no number make the shown function raise: data failures.
    assert all(line["reward/failed"] < 32 for line in lines if "reward/failed" in line)
    assert all(row["reward"] in (0.0, 1.0) for row in rows)
    assert "eval/accuracy" in lines[0]


def recorded(folder: Path) -> set[str]:
    """Return the names of the metrics in the run's MLflow store."""
    import sqlite3

    with sqlite3.connect(folder / "mlflow.db") as store:
        return {name for (name,) in store.execute("select distinct key from metrics")}
