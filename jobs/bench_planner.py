"""How fast the planner is: static plans against M and B, online decisions a second, and the dynamic programme it replaces.

python jobs/bench_planner.py
python jobs/bench_planner.py --quick --json planner.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from kray.planner import Beliefs, BetaValue, GrpoValue, KnapsackPlanner, solve

REFERENCE = Path(__file__).parents[1] / "tests" / "planner" / "test_solver.py"  # the dynamic programme lives there


def best_of(times: int, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of so many runs."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def dynamic_programme() -> Callable[..., float]:
    spec = importlib.util.spec_from_file_location("reference", REFERENCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.exact_optimum


def solve_grpo(alpha: np.ndarray, beta: np.ndarray, budget: int) -> np.ndarray:
    return solve(GrpoValue(alpha, beta), budget)


def static_rows(quick: bool) -> list[dict[str, float]]:
    """Seconds of `solve` and of a whole `plan` for M prompts and 8 M rollouts; of the dynamic programme where bearable."""
    exact, rows = dynamic_programme(), []
    for m in (64, 256, 512, 4096, 65536) if quick else (64, 256, 512, 4096, 65536, 1_000_000):
        rng = np.random.default_rng(0)
        alpha, beta = rng.uniform(0.1, 9, (2, m))
        value, budget, times = BetaValue(alpha, beta), (16 if m == 512 else 8) * m, 5 if m < 1e5 else 1
        row = {"prompts": m, "budget": budget, "solve_s": best_of(times, partial(solve, value, budget))}
        if m <= (256 if quick else 512):
            low, high = np.full(m, 2), np.full(m, 128)
            row["dynamic_programme_s"] = best_of(1, partial(exact, value, budget, low, high))
        if m <= 65536:
            row["solve_grpo_s"] = best_of(1, partial(solve_grpo, alpha, beta, budget))
        planner, ids = KnapsackPlanner("static", budget, beliefs=Beliefs()), [f"p{i}" for i in range(m)]
        for prompt in ids[:1000]:
            planner.observe(prompt, rng.integers(0, 2, 8))
        row["plan_s"] = best_of(1, partial(planner.plan, ids))
        rows.append(row)
        print("  ".join(f"{k} {v:.6g}" for k, v in row.items()), flush=True)
    return rows


def refit_row(m: int) -> dict[str, float]:
    """Seconds of one fit of the prior with M prompts seen."""
    rng, beliefs = np.random.default_rng(0), Beliefs()
    rows = beliefs.rows([f"p{i}" for i in range(m)])
    beliefs._last_trials[rows] = rng.integers(2, 40, m)
    beliefs._last_successes[rows] = rng.binomial(beliefs._last_trials[rows].astype(int), rng.beta(0.4, 0.6, m))
    beliefs._stale = True
    row = {"prompts": m, "refit_s": best_of(1, beliefs.refit_prior)}
    print(f"refit of the prior: prompts {m}  {row['refit_s']:.3f} s", flush=True)
    return row


def online_row(m: int, mean: int, value: str, marginal: str) -> dict[str, Any]:
    """Decisions a second, one core: each is one rollout named by `take` and one label given to `observe`."""
    rng = np.random.default_rng(0)
    budget, rate = m * mean, rng.beta(0.4, 0.6, m)
    ids = [f"p{i}" for i in range(m)]
    step = KnapsackPlanner("online", budget, 2, 512, value=value, marginal=marginal).begin(ids)
    reward = {i: iter((rng.random(600) < p).astype(float).tolist()) for i, p in zip(ids, rate.tolist(), strict=True)}
    flying: deque[str] = deque()
    started, cpu = time.perf_counter(), time.process_time()
    while not (step.in_flight == 0 and step.done):
        for prompt, rollouts in step.take(budget // 4 - len(flying)):
            flying.extend([prompt] * rollouts)
        prompt = flying.popleft()
        step.observe(prompt, [next(reward[prompt])])
    rates = budget / (time.perf_counter() - started), budget / (time.process_time() - cpu)
    text = f"{rates[0]:,.0f} decisions a second, {rates[1]:,.0f} a CPU second"
    print(f"online {value} {marginal}: prompts {m}  budget {budget}  {text}", flush=True)
    row = {"prompts": m, "budget": budget, "value": value, "marginal": marginal}
    return row | {"decisions_per_s": rates[0], "decisions_per_cpu_s": rates[1]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes that take seconds")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    out: dict[str, Any] = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "static": static_rows(arguments.quick),
        "refit": [refit_row(m) for m in (10_000, 100_000 if arguments.quick else 1_000_000)],
        "online": [
            online_row(m, mean, value, marginal)
            for m, mean, value, marginal in (
                (64, 8, "paper", "expected_gain"),
                (512, 16, "paper", "expected_gain"),
                (512, 64, "paper", "expected_gain"),
                (512, 64, "paper", "stop_at_mixed"),
                (512, 64, "paper", "hybrid"),
                (512, 64, "grpo", "expected_gain"),
                (16384 if arguments.quick else 131072, 8, "paper", "expected_gain"),
            )
        ],
    }
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(out, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
