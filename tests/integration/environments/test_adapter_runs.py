"""Runs that learn from environments of other libraries, with a policy that knows no sums: the path is what is tested."""

from __future__ import annotations

import json
import os

from openenv_python import ROOT, openenv_python

from kray.config import load_config
from kray.driver.remote import run_on_cluster
from kray.metrics import documented

EXAMPLES = str(ROOT / "examples")


def train(name: str, policy, folder, *overrides: str) -> list[dict[str, float]]:
    """Train two steps with a configuration; return the lines of the run's metrics."""
    small = [
        "model.tiny=null",
        f"model.path={policy}",
        f"run.dir={folder}",
        "run.steps=2",
        "prompts.per_step=4",
        "plan.budget=16",
        "rollout.max_sequences=32",
        "rollout.kv_cache_gib=0.05",
        "rollout.max_response_tokens=64",
        "environment.step_timeout_s=60",
        "evaluate.every=0",
        "evaluate.samples=1",
        "evaluate.greedy=false",
        "track.every=1",
        "track.system_metrics=false",
        *overrides,
    ]
    summary = run_on_cluster(load_config(f"configs/{name}.yaml", small), str(policy), folder / "run", None, "run")
    assert (summary.steps, summary.rollouts) == (2, 32)
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert {key for line in lines for key in line if key not in ("step", "time") and not documented(key)} == set()
    steps = [line for line in lines if "environment/turns_mean" in line]
    assert len(steps) == 2
    for line in steps:
        assert line["environment/failed"] == 0
        assert 1 < line["environment/turns_mean"] <= line["environment/turns_max"] == 2
        assert line["train/logprob_gap_max"] < 1e-4
    table = json.loads((folder / "run/samples/step-000002.json").read_text())
    prompt, response = table["columns"].index("prompt"), table["columns"].index("response")
    twice = [row for row in table["data"] if row[prompt] in row[response]]
    assert twice, "a wrong answer is followed by the problem and a second attempt"
    return lines


def test_run_with_an_openenv_server(ray_local, warm_policy, tmp_path):
    train(
        "openenv",
        warm_policy,
        tmp_path,
        # A relative path, as in the configuration, whose folder is another one.
        f"environment.options.python={os.path.relpath(openenv_python())}",
        "prompts.train.size=16",
        "prompts.test.size=8",
    )


def test_run_with_an_environment_of_verifiers(ray_local, warm_policy, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    train("verifiers", warm_policy, tmp_path, "prompts.train.tasks.size=16", "prompts.test.tasks.size=8")
