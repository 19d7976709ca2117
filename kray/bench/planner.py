"""Measures the planner: static plans against prompts and budget, refits of the prior, and online decisions a second.

Used by jobs/bench_planner.py. The references are a dynamic programme over the integer budget, which `solve` replaces, and a
partial sort of the whole table of gains; steps that choose among all training prompts are measured as the driver makes them.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from kray.planner import BaselineValue, Beliefs, BetaValue, GrpoValue, KnapsackPlanner, solve
from kray.planner.admitting import Candidates
from kray.prompts.full_admission import FullAdmission
from kray.prompts.sampler import PromptSampler

# Numbers of prompts of static plans; the dynamic programme takes minutes beyond its own limit.
STATIC_PROMPTS = (64, 256, 512, 4096, 65536, 1_000_000)
QUICK_STATIC_PROMPTS = STATIC_PROMPTS[:-1]
REFERENCE_PROMPTS, QUICK_REFERENCE_PROMPTS = 512, 256
# (prompts, mean rollouts a prompt, value, marginal) of the online runs.
ONLINE = (
    (64, 8, "paper", "expected_gain"),
    (512, 16, "paper", "expected_gain"),
    (512, 64, "paper", "expected_gain"),
    (512, 64, "paper", "stop_at_mixed"),
    (512, 64, "paper", "hybrid"),
    (512, 64, "grpo", "expected_gain"),
)


class Value(Protocol):
    """What the dynamic programme needs of a value function (kray/planner/values.py)."""

    def total(self, n: np.ndarray) -> np.ndarray:
        """Return the value of n (M,) rollouts, (M,) float64."""

    def __len__(self) -> int: ...


def exact_optimum(
    value: Value, budget: int, lower: np.ndarray, upper: np.ndarray, cost: np.ndarray | None = None
) -> float:
    """Compute the largest sum of values by dynamic programming over the integer budget, in O(M B^2).

    Args:
        value: Value function of M prompts.
        budget: B. Without costs it is spent completely, with costs at most.
        lower: (M,) int smallest number of rollouts.
        upper: (M,) int largest number of rollouts.
        cost: (M,) integers, price of one rollout; None for 1.
    """
    totals_MN = np.array([value.total(np.full(len(value), n)) for n in range(int(np.max(upper)) + 1)]).T
    best_B = np.full(budget + 1, -np.inf)
    best_B[0] = 0.0
    for i in range(len(value)):
        price = 1 if cost is None else int(cost[i])
        next_B = np.full(budget + 1, -np.inf)
        for n in range(int(lower[i]), int(upper[i]) + 1):
            spent = price * n
            if spent <= budget:
                next_B[spent:] = np.maximum(next_B[spent:], best_B[: budget + 1 - spent] + totals_MN[i, n])
        best_B = next_B
    return float(best_B[budget] if cost is None else best_B.max())


def fastest_s(times: int, work: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of so many runs of `work`."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def measure_static(quick: bool) -> list[dict[str, float]]:
    """Measure `solve` and a whole `plan` for M prompts and 8 M rollouts (M = 512: 16 M), and the dynamic programme.

    Args:
        quick: Whether to leave out sizes that take minutes.

    Returns:
        A row for each M: prompts, budget, solve_s, plan_s, and up to some M solve_grpo_s and dynamic_programme_s.
    """
    rows = []
    for m in QUICK_STATIC_PROMPTS if quick else STATIC_PROMPTS:
        rng = np.random.default_rng(0)
        alpha, beta = rng.uniform(0.1, 9, (2, m))
        value, budget, times = BetaValue(alpha, beta), (16 if m == 512 else 8) * m, 5 if m < 1e5 else 1
        row: dict[str, float] = {"prompts": m, "budget": budget}
        row["solve_s"] = fastest_s(times, partial(solve, value, budget))
        if m <= (QUICK_REFERENCE_PROMPTS if quick else REFERENCE_PROMPTS):
            low, high = np.full(m, 2), np.full(m, 128)
            row["dynamic_programme_s"] = fastest_s(1, partial(exact_optimum, value, budget, low, high))
        if m <= 65536:
            row["solve_grpo_s"] = fastest_s(1, partial(_solve_grpo, alpha, beta, budget))
        planner, ids = KnapsackPlanner("static", budget, beliefs=Beliefs()), [f"p{i}" for i in range(m)]
        for prompt in ids[:1000]:
            planner.observe(prompt, rng.integers(0, 2, 8))
        row["plan_s"] = fastest_s(1, partial(planner.plan, ids))
        rows.append(row)
        print("  ".join(f"{k} {v:.6g}" for k, v in row.items()), flush=True)
    return rows


def _solve_grpo(alpha: np.ndarray, beta: np.ndarray, budget: int) -> np.ndarray:
    return solve(GrpoValue(alpha, beta), budget)


def measure_table(prompts: int, budget: int) -> list[dict[str, Any]]:
    """Compare `solve` with a partial sort of all gains, for values `paper` (lower 2) and `baseline` (lower 1), upper 128.

    Returns:
        A row for each value: prompts, budget, value, solve_s, table_s (gains and partial sort) and their ratio.
    """
    alpha, beta = np.random.default_rng(0).uniform(0.1, 9, (2, prompts))
    out = []
    for name, value, lower in (("paper", BetaValue(alpha, beta), 2), ("baseline", BaselineValue(alpha, beta), 1)):
        rows = np.repeat(np.arange(prompts), 128 - lower)
        n = np.tile(np.arange(lower, 128), prompts)
        at = len(rows) - (budget - lower * prompts)
        table_s = fastest_s(15, partial(_sorted_table, value, rows, n, at))
        solve_s = fastest_s(15, partial(solve, value, budget, lower))
        print(f"{name}: prompts {prompts}  budget {budget}  solve {solve_s:.5f} s  table {table_s:.5f} s", flush=True)
        sizes = {"prompts": prompts, "budget": budget, "value": name}
        out.append(sizes | {"solve_s": solve_s, "table_s": table_s, "ratio": solve_s / table_s})
    return out


def _sorted_table(value: BetaValue | BaselineValue, rows: np.ndarray, n: np.ndarray, at: int) -> np.ndarray:
    return np.partition(value.gain_at(rows, n), at)


def measure_candidates(prompts: int, budget: int) -> dict[str, Any]:
    """Measure steps of plan.value baseline that choose among so many prompts, all of which were visited before.

    A step is offered, planned, taken, labelled and recorded as in the driver. The first one also looks up every prompt.

    Returns:
        prompts, budget, first_s, and of the later steps the median: step_s, and begin_s of planning alone; state_s and
        state_mib of the visits in a checkpoint.
    """
    rng, ids = np.random.default_rng(0), [f"prompt-{i}" for i in range(prompts)]
    admission = FullAdmission(PromptSampler(ids, 1, 0), 8, budget // 2)
    candidates = Candidates(ids)
    planner = KnapsackPlanner("static", budget, 1, candidates=0, value="baseline", beliefs=_visited(ids, rng))
    steps, begins = [], []
    for step in range(12):
        started = time.perf_counter()
        indices, due = admission.offer(step)
        plan = planner.begin(candidates.offer(indices), due=due)
        begins.append(time.perf_counter() - started)
        for prompt, rollouts in plan.take():
            plan.observe(prompt, [1.0] * rollouts)
        plan.allocation()
        admission.visited(step, indices[plan.positions])
        steps.append(time.perf_counter() - started)
    started = time.perf_counter()
    state = json.dumps(admission.to_dict())
    state_s = time.perf_counter() - started
    row = {"prompts": prompts, "budget": budget, "first_s": steps[0], "step_s": float(np.median(steps[1:]))}
    row |= {"begin_s": float(np.median(begins[1:])), "state_s": state_s, "state_mib": len(state) / 2**20}
    print("all prompts offered: " + "  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
    return row


def _visited(ids: list[str], rng: np.random.Generator) -> Beliefs:
    """Return beliefs with one visit of each prompt."""
    beliefs = Beliefs(fit_discount=True)
    rows = beliefs.rows(ids)
    beliefs._last_trials[rows] = rng.integers(2, 40, len(ids))
    beliefs._last_successes[rows] = rng.binomial(beliefs._last_trials[rows].astype(int), rng.beta(0.4, 0.6, len(ids)))
    beliefs._successes[rows] = beliefs._last_successes[rows]
    beliefs._failures[rows] = beliefs._last_trials[rows] - beliefs._last_successes[rows]
    beliefs._visits[rows] = 1
    beliefs._stale = True
    return beliefs


def measure_refit(prompts: int) -> dict[str, float]:
    """Measure one fit of the prior with so many prompts seen: prompts, refit_s."""
    rng, beliefs = np.random.default_rng(0), Beliefs()
    rows = beliefs.rows([f"p{i}" for i in range(prompts)])
    beliefs._last_trials[rows] = rng.integers(2, 40, prompts)
    beliefs._last_successes[rows] = rng.binomial(beliefs._last_trials[rows].astype(int), rng.beta(0.4, 0.6, prompts))
    beliefs._stale = True
    row = {"prompts": prompts, "refit_s": fastest_s(1, beliefs.refit_prior)}
    print(f"refit of the prior: prompts {prompts}  {row['refit_s']:.3f} s", flush=True)
    return row


def measure_online(prompts: int, mean: int, value: str, marginal: str) -> dict[str, Any]:
    """Measure online decisions: each is one rollout assigned by `take` and one reward given to `observe`.

    Args:
        prompts: M.
        mean: Rollouts a prompt on average.
        value: The planner's value function.
        marginal: The planner's marginal.

    Returns:
        The settings, decisions_per_s and decisions_per_cpu_s of one core.
    """
    rng = np.random.default_rng(0)
    budget, rate = prompts * mean, rng.beta(0.4, 0.6, prompts)
    ids = [f"p{i}" for i in range(prompts)]
    step = KnapsackPlanner("online", budget, 2, 512, value=value, marginal=marginal).begin(ids)
    rewards = {i: iter((rng.random(600) < p).astype(float).tolist()) for i, p in zip(ids, rate.tolist(), strict=True)}
    in_flight: deque[str] = deque()
    started, cpu = time.perf_counter(), time.process_time()
    while not (step.in_flight == 0 and step.done):
        for prompt, rollouts in step.take(budget // 4 - len(in_flight)):
            in_flight.extend([prompt] * rollouts)
        prompt = in_flight.popleft()
        step.observe(prompt, [next(rewards[prompt])])
    per_s, per_cpu_s = budget / (time.perf_counter() - started), budget / (time.process_time() - cpu)
    figures = f"{per_s:,.0f} decisions a second, {per_cpu_s:,.0f} a CPU second"
    print(f"online {value} {marginal}: prompts {prompts}  budget {budget}  {figures}", flush=True)
    row = {"prompts": prompts, "budget": budget, "value": value, "marginal": marginal}
    return row | {"decisions_per_s": per_s, "decisions_per_cpu_s": per_cpu_s}


def measure(quick: bool) -> dict[str, Any]:
    """Measure everything: static, table, candidates, refit and online rows."""
    largest = (16384 if quick else 131072, 8, "paper", "expected_gain")
    return {
        "static": measure_static(quick),
        "table": measure_table(512, 8192),
        "candidates": [measure_candidates(m, 256) for m in (10_000, 100_000 if quick else 1_000_000)],
        "refit": [measure_refit(m) for m in (10_000, 100_000 if quick else 1_000_000)],
        "online": [measure_online(*settings) for settings in (*ONLINE, largest)],
    }
