"""Runs on games of other packages: a tiny policy on textarena, a chat model on SkyRL-Gym and GEM."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_models import chat_model

from kray.config import TinyPolicyConfig, load_config
from kray.driver.remote import run_on_cluster
from kray.train import tiny_policy

SMALL = (
    "run.steps=2",
    "prompts.per_step=8",
    "plan.budget=16",
    "plan.candidates=1",
    "rollout.max_sequences=16",
    "rollout.kv_cache_gib=0.2",
    "evaluate.every=0",
    "evaluate.samples=1",
    "evaluate.greedy=false",
    "track.every=1",
    "track.system_metrics=false",
)
ON_CPU = ("model.dtype=float32", "rollout.gpus_per_engine=0", "train.gpus_per_rank=0", "rollout.eager=true")


def run(name: str, model: Path, folder: Path, *overrides: str) -> tuple[list[dict], list[str]]:
    """Run two steps; return the lines with metrics and the sampled responses."""
    config = load_config(f"configs/{name}.yaml", [*SMALL, f"model.path={model}", f"run.dir={folder}", *overrides])
    summary = run_on_cluster(config, str(model), folder / "run", None, "run")
    assert summary.steps == 2
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert all(line["environment/failed"] == 0 for line in lines if "environment/failed" in line)
    gaps = [line["train/logprob_gap_max"] for line in lines if "train/logprob_gap_max" in line]
    assert gaps
    assert max(gaps) < 1e-3
    table = json.loads((folder / "run/samples/step-000002.json").read_text())
    return lines, [row[table["columns"].index("response")] for row in table["data"]]


def test_tiny_policy_plays_textarena(ray_local, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_policy, "GAMES", 256)
    games = load_config("configs/textarena.yaml").model.tiny.games
    shape = {"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64}
    model = tiny_policy.ensure_tiny_policy(
        TinyPolicyConfig(**shape, warmup_steps=120, batch_size=64, games=games), tmp_path / "cache"
    )
    lines, responses = run(
        "textarena", model, tmp_path, "model.tiny=null", "prompts.train.size=16", "prompts.test.size=8"
    )
    assert any("The target number is" in response for response in responses)
    assert max(line.get("environment/turns_mean", 0) for line in lines) > 1.5


def test_chat_model_talks_with_skyrl_gym(ray_local, tmp_path):
    for part in ("train", "validation"):
        # Rows as SkyRL's own scripts write them.
        rows = [
            {
                "data_source": "openai/gsm8k",
                "prompt": [{"role": "user", "content": f"What is {number} + 1?"}],
                "env_class": "gsm8k_multi_turn",
                "reward_spec": {"method": "rule", "ground_truth": str(number + 1)},
                "extra_info": {"split": part, "index": number},
            }
            for number in range(12)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{part}.parquet")
    files = [
        f"prompts.{key}.path={tmp_path}/{part}.parquet" for key, part in (("train", "train"), ("test", "validation"))
    ]
    lines, responses = run(
        "skyrl-gym", chat_model(tmp_path / "model"), tmp_path, *files, *ON_CPU, "rollout.max_response_tokens=700"
    )
    assert all("tentative numeric answer" in response for response in responses if "\nuser\n" in response)
    assert max(line.get("environment/turns_mean", 0) for line in lines) > 1


def test_chat_model_plays_gem(ray_local, tmp_path):
    pytest.importorskip("gem.envs", reason="`make test-all` installs gem-llm")
    _, responses = run(
        "gem",
        chat_model(tmp_path / "model"),
        tmp_path,
        *ON_CPU,
        "prompts.train.size=16",
        "prompts.test.size=8",
        "prompts.max_tokens=1600",
        "rollout.max_response_tokens=200",
        "rollout.max_context_tokens=2000",
    )
    assert responses
