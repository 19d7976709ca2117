"""Jobs as users call them: exit codes, messages, help."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from inline_jobs import run_job

ROOT = Path(__file__).parents[3]
QUICK = str(ROOT / "configs" / "tiny.yaml")


def job(name: str, *arguments: str, limit_s: float = 120.0) -> subprocess.CompletedProcess:
    command = [sys.executable, f"jobs/{name}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)


def test_check_prints_what_would_run_and_starts_nothing(tmp_path):
    done = job(
        "train", "--config", QUICK, "--check", "plan.budget=320", "train.baseline=group", "train.advantage_clip=2",
        f"run.dir={tmp_path}/runs",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = dict(
        re.split(r"\s{2,}", line, maxsplit=1) for line in done.stdout.splitlines() if re.search(r"\S\s{2,}\S", line)
    )
    assert table["rollouts a step"] == "320"
    assert table["mean rollouts per prompt"].startswith("at least 2.5")
    assert table["engines"] == "1 x {CPU: 1}"
    assert "arithmetic/train/0" in done.stdout
    assert "warning: train.advantage_clip 2 cuts" in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan.budgett=3"], "config error: plan.budgett is not a key (did you mean plan.budget?)"),
        (["plan.budget=lots"], "config error: plan.budget"),
        (["plan.budget=10"], "config error: plan.budget"),
        (["rollout.top_p=0.9"], "config error: rollout.top_p"),
        (["prompts.train.kind=jsonl", "prompts.train.path=nowhere.jsonl"], "data error: nowhere.jsonl"),
        (["model.tiny=null", "model.path=./no-such-model"], "config error: model.path"),
        (["resume=./no-such-run"], "config error: resume"),
        (["reward.verifier=nowhere:judge"], "config error: reward.verifier"),
        (["prompts.per_step=4000", "plan.budget=40000"], "config error: prompts.per_step"),
    ],
)
def test_bad_input_ends_with_2_and_one_message(arguments, message, tmp_path):
    done = run_job("train", "--config", QUICK, "--check", f"run.dir={tmp_path}/runs", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_check_places_actors_on_a_cluster(tmp_path):
    done = run_job(
        "train", "--config", QUICK, "--check", "--cluster", "cluster/kuberay-cpu.yaml", f"run.dir={tmp_path}/runs"
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^learner ranks on +learner: 1$", done.stdout, re.M)
    assert re.search(r"^engines that fit +0 without another node, at most 2$", done.stdout, re.M)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check", "--cluster", "cluster/kuberay-cpu.yaml", "rollout.engines=3"], "config error: rollout.engines: 3"),
        (["--check", "--cluster", "cluster/kuberay-cpu.yaml", "train.ranks=4"], "config error: train.ranks: 4"),
        (
            ["--check", "--cluster", "cluster/nowhere.yaml"],
            "config error: --cluster: cluster/nowhere.yaml cannot be read",
        ),
        (["--cluster", "cluster/kuberay-cpu.yaml"], "--cluster goes with --check"),
    ],
)
def test_runs_too_large_for_a_cluster_end_with_2(arguments, message, tmp_path):
    done = run_job("train", "--config", QUICK, f"run.dir={tmp_path}/runs", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_math_7b_config_is_checked_on_data_of_its_form(tmp_path):
    """configs/math-7b.yaml without a hub: files with the fields of the data sets that it names."""
    train = [{"prompt": f"What is {i} + 1?", "solution": str(i + 1), "data_source": "math_dapo"} for i in range(300)]
    test = [{"problem": f"What is ${i}^2$?", "answer": str(i * i), "level": 1} for i in range(20)]
    other = [{"question": row["problem"], "answer": row["answer"]} for row in test]
    for name, rows in (("train", train), ("test", test), ("minerva", other)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [
        f"prompts.{part}.{key}" for part in ("train", "test") for key in (f"path={tmp_path}/{part}.jsonl", "kind=jsonl")
    ]
    more = {"aime24": "test", "amc": "test", "minerva": "minerva"}
    paths += [f"prompts.more_tests.{name}.path={tmp_path}/{file}.jsonl" for name, file in more.items()]
    cluster = ["--cluster", "cluster/kuberay-job.yaml"]
    done = run_job("train", "--config", "configs/math-7b.yaml", "--check", *cluster, *paths, f"run.dir={tmp_path}/runs")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^rollouts a step +2,048$", done.stdout, re.M)
    assert re.search(r"^mean rollouts per prompt +8.0 \(from 2 to 128, static\)$", done.stdout, re.M)
    assert re.search(r"^evaluations +11 x 1,280 responses$", done.stdout, re.M)  # 16 a problem of 4 x 20
    assert re.search(r"^learner ranks on +learner: 8$", done.stdout, re.M)
    assert re.search(r"^engines on +rollout: 8$", done.stdout, re.M)


def test_bad_key_in_a_file_is_reported_with_its_line(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(Path(QUICK).read_text().replace("  budget: 512", "  budgett: 512"))
    done = job("train", "--config", str(file), "--check")
    line = next(i for i, text in enumerate(file.read_text().splitlines(), 1) if "budgett" in text)
    assert done.returncode == 2
    assert "plan.budgett is not a key (did you mean plan.budget?)" in done.stderr
    assert f"bad.yaml:{line}" in done.stderr


@pytest.mark.parametrize("name", ["train", "evaluate", "export", "submit", "bench_sync"])
def test_help_shows_two_examples(name):
    done = run_job(name, "--help")
    assert done.returncode == 0
    assert done.stdout.count(f"python jobs/{name}.py") >= 2


def test_submit_shows_no_password_to_the_dashboard(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hidden-word@mlflow.example")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head.example:8265")
    done = job("submit", "jobs/train.py", "--config", QUICK)
    assert done.returncode == 2
    assert "MLFLOW_TRACKING_URI holds a password" in done.stderr
    assert "hidden-word" not in done.stderr + done.stdout
