"""What the children of a comparison left behind, as arrays. Reads their files; knows no method by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kray.compare.study import RATES, VISITS, Study
from kray.metrics import (
    EVAL_ACCURACY,
    EVAL_EXACT_ACCURACY,
    EVAL_GREEDY_ACCURACY,
    GROUP_EFFECTIVE_RATIO_PROMPTS,
    GROUP_EFFECTIVE_RATIO_ROLLOUTS,
    PROGRESS_EPOCH,
    TIMING_S_EXACT,
    TIMING_S_STEP,
)
from kray.planner.metrics import STATUSES, status, transition_matrix

BINS = (0.0, 0.003, 0.05, 0.3, 0.9, 1.0)  # edges of exact success rates: the U-shape of the arithmetic setting
BIN_NAMES = ("under .003", ".003 to .05", ".05 to .3", ".3 to .9", "over .9")
HARD = 0.05  # a test prompt is hard when the start model solves it more rarely


@dataclass
class Run:
    """One finished child. Curves have T points, one an evaluation; per-step arrays have S."""

    method: str
    seed: int
    steps: np.ndarray  # (T,) of the evaluations
    accuracy: np.ndarray  # (T,) exact where it is known, else sampled
    sampled: np.ndarray  # (T,)
    greedy: np.ndarray  # (T,) NaN where there was none
    rollouts: np.ndarray  # (T,) spent by then
    tokens: np.ndarray  # (T,)
    seconds: np.ndarray  # (T,) in steps, without what only the comparison computes
    effective_rollouts: np.ndarray  # (S,)
    effective_prompts: np.ndarray  # (S,)
    visits: list[dict[str, Any]]  # S lines of visits.jsonl
    test_rates: np.ndarray | None  # (T, prompts) exact success rates
    train_rates: dict[str, float] = field(default_factory=dict)  # exact, before training
    per_epoch: float = 0.0  # steps in which all prompts are visited once

    @property
    def final(self) -> float:
        return float(self.accuracy[-1])

    def late(self, per_step: np.ndarray) -> float:
        """Mean over the steps after the first epoch, where planners know labels; over all if there are no more."""
        later = per_step[int(np.ceil(self.per_epoch)) :]
        return float(np.nanmean(later if len(later) else per_step))

    def largest_budget(self) -> float:
        """Of any prompt in any step, over the mean budget of its step."""
        return max(max(line["budgets"]) / (sum(line["budgets"]) / len(line["budgets"])) for line in self.visits)

    def hard_rate(self) -> float:
        """Final mean success rate of the test prompts that were hard to begin with; NaN without exact rates."""
        if self.test_rates is None or not (self.test_rates[0] < HARD).any():
            return float("nan")
        return float(self.test_rates[-1][self.test_rates[0] < HARD].mean())

    def by_difficulty(self) -> np.ndarray:
        """(bins,) gain in mean success rate of test prompts by what the start model made of them; NaN where there are none."""
        if self.test_rates is None:
            return np.full(len(BIN_NAMES), np.nan)
        where = bin_of(self.test_rates[0])
        gain = self.test_rates[-1] - self.test_rates[0]
        return np.array([gain[where == b].mean() if (where == b).any() else np.nan for b in range(len(BIN_NAMES))])

    def transitions(self) -> np.ndarray:
        """(5, 5) prompts from their status at the first visit (rows) to that at the last (columns)."""
        first: dict[str, tuple[float, float]] = {}
        last: dict[str, tuple[float, float]] = {}
        for line in self.visits:
            for prompt_id, s, n in zip(line["ids"], line["successes"], line["trials"], strict=True):
                if prompt_id in first:
                    last[prompt_id] = (s, n)
                else:
                    first[prompt_id] = (s, n)
        if not last:
            return np.zeros((len(STATUSES), len(STATUSES)), dtype=np.int64)
        before = np.array([first[prompt_id] for prompt_id in last])
        after = np.array(list(last.values()))
        return transition_matrix(status(*before.T), status(*after.T))

    def ever_solved(self) -> tuple[np.ndarray, np.ndarray]:
        """(rollouts (S,), training prompts solved at least once by then (S,))."""
        solved: set[str] = set()
        spent, counts, total = [], [], 0.0
        for line in self.visits:
            solved |= {i for i, s in zip(line["ids"], line["successes"], strict=True) if s > 0}
            total += sum(line["trials"])
            spent.append(total)
            counts.append(float(len(solved)))
        return np.array(spent), np.array(counts)

    def budgets_by_rate(self) -> tuple[np.ndarray, np.ndarray]:
        """(exact success rates, budgets) of all visits after the first epoch, (V,) each; empty without exact rates."""
        late = self.visits[int(np.ceil(self.per_epoch)) :] or self.visits
        pairs = [(line["p"], line["budgets"]) for line in late if "p" in line]
        if not pairs:
            return np.zeros(0), np.zeros(0)
        return np.concatenate([p for p, _ in pairs]), np.concatenate([np.array(n, float) for _, n in pairs])


def bin_of(rates: np.ndarray) -> np.ndarray:
    """Index into BIN_NAMES, (M,)."""
    return np.clip(np.searchsorted(BINS, rates, side="right") - 1, 0, len(BIN_NAMES) - 1)


@dataclass
class Results:
    """Runs by method, in the study's order; methods without a finished run are left out."""

    study: Study
    runs: dict[str, dict[int, Run]]
    took: dict[str, list[float]]  # seconds of each child from its beginning to its end

    def seeds(self, method: str, of: Callable[[Run], float]) -> dict[int, float]:
        """A number of each run of a method, by seed; empty for a method that was not run."""
        return {seed: of(run) for seed, run in self.runs.get(method, {}).items()}


def read_results(study: Study) -> Results:
    """Of the children that are done."""
    runs: dict[str, dict[int, Run]] = {}
    took: dict[str, list[float]] = {}
    for method in study.methods:
        for child in study.children:
            done = child.result() if child.method == method else None
            if done is not None:
                runs.setdefault(method, {})[child.seed] = read_run(child.folder, method, child.seed)
                took.setdefault(method, []).append(done["took_s"])
    return Results(study, runs, took)


def read_run(folder: Path, method: str, seed: int) -> Run:
    lines = list(_lines(folder / "metrics.jsonl"))
    steps = [line for line in lines if line["step"] > 0 and TIMING_S_STEP in line]
    seconds = np.cumsum([0.0, *(line[TIMING_S_STEP] - line.get(TIMING_S_EXACT, 0.0) for line in steps)])
    judged = [line for line in lines if EVAL_ACCURACY in line]
    at = np.array([line["step"] for line in judged])
    spent = {
        name: np.array([0.0, *(line[f"progress/{name}"] for line in steps)])[at] for name in ("rollouts", "tokens")
    }
    rates = list(_lines(folder / RATES)) if (folder / RATES).is_file() else []
    sampled = np.array([line[EVAL_ACCURACY] for line in judged])
    visits = list(_lines(folder / VISITS))
    epoch = steps[-1][PROGRESS_EPOCH] / steps[-1]["step"] if steps else 1.0
    return Run(
        method=method,
        seed=seed,
        steps=at,
        accuracy=np.array([line[EVAL_EXACT_ACCURACY] for line in judged]) if rates else sampled,
        sampled=sampled,
        greedy=np.array([line.get(EVAL_GREEDY_ACCURACY, np.nan) for line in judged]),
        rollouts=spent["rollouts"],
        tokens=spent["tokens"],
        seconds=seconds[at],
        effective_rollouts=np.array([line.get(GROUP_EFFECTIVE_RATIO_ROLLOUTS, np.nan) for line in steps]),
        effective_prompts=np.array([line.get(GROUP_EFFECTIVE_RATIO_PROMPTS, np.nan) for line in steps]),
        visits=visits,
        test_rates=np.array([line["test"] for line in rates]) if rates else None,
        train_rates=rates[0].get("train", {}) if rates else {},
        per_epoch=1 / epoch,
    )


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    with path.open() as file:
        for line in file:
            yield json.loads(line)
