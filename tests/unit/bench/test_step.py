"""The whole-step benchmark: what its figures mean, and that its parts do the run's own work."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest
from logged_lines import logged_lines

from kray.bench import step, trl_process
from kray.errors import ConfigError, KrayError

ROOT = Path(__file__).parents[3]


def line(number: int, end: float, **times: float) -> dict[str, float]:
    """A step of 1.0 s inside, 100 rollouts and 400 tokens, as metrics.jsonl holds it."""
    parts = {
        "plan": 0.05,
        "generate": 0.5,
        "reward": 0.05,
        "update": 0.25,
        "sync": 0.1,
        "idle": 0.6,
        "step": 1.0,
    } | times
    done = {"progress/rollouts": 100.0 * number, "progress/tokens": 400.0 * number}
    shares = {"group/effective_ratio_prompts": 0.5, "train/update_s": 0.2}
    return {"step": number, "time": end} | done | shares | {f"timing_s/{name}": value for name, value in parts.items()}


def test_step_times_add_up():
    rows = [{"step": 0, "time": 10.0}, line(1, 15.0, generate=4.0), line(2, 16.25), line(3, 17.5), line(4, 18.75)]
    found = step.step_times(rows, warm=1)
    assert found["step_s"] == pytest.approx(1.25)  # the slow first step is not measured
    assert found["rollouts_per_s"] == pytest.approx(80.0)
    assert sum(found["split_s"].values()) == pytest.approx(found["step_s"])
    assert found["split_s"]["between steps"] == pytest.approx(0.25)
    assert found["engine_busy_s"] == pytest.approx(0.4)
    assert found["tokens"] == [400.0] * 4


def test_ratios_compare_kray_with_its_parts_and_with_trl():
    kray = {"step_s": 0.4, "rollouts_per_s": 1280.0, "tokens": [10, 20, 30, 40]}
    alone = {"generate_s": 0.2, "update_s": 0.12, "tokens": [10, 20, 31, 40]}
    found = step.ratios({"kray": kray, "alone": alone, "trl": {"rollouts_per_s": 512.0}})
    assert found["step_over_parts"] == pytest.approx(1.25)
    assert found["rate_over_trl"] == pytest.approx(2.5)
    assert found["same_work"] == 0.75
    assert "rate_over_trl" not in step.ratios({"kray": kray, "alone": alone})


def test_a_step_of_the_benchmark_is_prompts_times_rollouts(tmp_path):
    config = step.step_config(str(ROOT / "configs/tiny.yaml"), str(tmp_path), 16, 4, 3, ["train.lr=1e-5"])
    assert (config.prompts.per_step, config.plan.budget, config.run.steps) == (16, 64, 3)
    assert (config.plan.mode, config.evaluate.every, config.train.lr) == ("uniform", 0, 1e-5)
    assert (config.train.baseline, config.train.epochs, config.train.thin) == ("group", 1, 1.0)


def test_trl_failure_reports_last_lines_and_logs_progress():
    program = "import sys; print('TRL: tries'); print('noise'); sys.exit('no such setting')"
    with logged_lines() as lines, pytest.raises(KrayError, match=r"(?s)ended with 1 .*no such setting"):
        trl_process._call([sys.executable, "-c", program], 60.0, dict(os.environ))
    assert lines == ["TRL: tries"]


def test_trl_is_killed_at_its_deadline():
    with pytest.raises(KrayError, match=r"limit 1 s"):
        trl_process._call([sys.executable, "-c", "import time; time.sleep(60)"], 1.0, dict(os.environ))


def test_a_python_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="--trl-python nowhere/python"):
        trl_process.find_python("nowhere/python")


def test_no_module_beside_trls_script_hides_a_package_that_it_imports():
    """Python puts the folder of a script first on its path."""
    script = ROOT / "kray/bench/trl_child.py"
    imports = [
        node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {name.split(".")[0] for node in imports for name in imported(node)}
    assert {"trl", "torch", "transformers", "datasets"} <= names
    assert not names & {path.stem for path in script.parent.iterdir()}


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
