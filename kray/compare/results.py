"""What the children of a comparison left behind, as arrays. Reads their files; knows no method by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kray.compare.costs import Work, flops
from kray.compare.stats import cost_to
from kray.compare.study import RATES, VISITS, Study
from kray.metrics import (
    EVAL_ACCURACY,
    EVAL_ENTROPY,
    EVAL_EXACT_ACCURACY,
    EVAL_GREEDY_ACCURACY,
    GROUP_EFFECTIVE_RATIO_PROMPTS,
    GROUP_EFFECTIVE_RATIO_ROLLOUTS,
    PLANNER_ADMITTED,
    PROGRESS_EPOCH,
    PROGRESS_ROLLOUTS,
    PROGRESS_TOKENS,
    TIMING_S_EXACT,
    TIMING_S_STEP,
    TRAIN_ENTROPY,
    TRAIN_EPOCHS,
    TRAIN_GROUPS_RATIO,
    TRAIN_PROMPTS,
    TRAIN_ROWS,
)
from kray.planner.metrics import STATUSES, status, transition_matrix

# Edges of exact success rates that show the U-shape of the arithmetic setting.
BINS = (0.0, 0.003, 0.05, 0.3, 0.9, 1.0)
BIN_NAMES = ("under .003", ".003 to .05", ".05 to .3", ".3 to .9", "over .9")
# Success rate of the start model below which a test prompt counts as hard, and final one above which it is mastered.
HARD, MASTERED = 0.05, 0.9
# Currency -> its name for people.
CURRENCIES = {
    "rollouts": "rollouts",
    "tokens": "generated tokens",
    "seconds": "seconds",
    "flops": "modelled FLOPs",
    "flops_weighted": "modelled FLOPs, generation weighted",
}


@dataclass
class Run:
    """One finished child, with T evaluations and S steps.

    Attributes:
        method: Of the child.
        seed: Of the child.
        steps: (T,) completed steps at each evaluation.
        accuracy: (T,) exact where it is known, else sampled.
        sampled: (T,) sampled accuracy.
        greedy: (T,) greedy accuracy, NaN where it was not measured.
        rollouts: (T,) rollouts until then.
        tokens: (T,) sampled tokens until then.
        seconds: (T,) seconds in steps until then, without what only the comparison computes.
        effective_rollouts: (S,) share of the rollouts in groups with mixed rewards.
        effective_prompts: (S,) share of the prompts with such a group.
        visits: S lines of visits.jsonl.
        test_rates: (T, prompts) exact success rates of the test prompts.
        train_rates: Prompt id -> exact success rate before training.
        per_epoch: Steps in which all prompts are visited once.
        work: What was done until each evaluation, for modelled costs; None where the run did not record it.
        eval_entropy: (T,) entropy of sampled responses to test prompts, nats a token; NaN where it was not measured.
        train_entropy: (S,) entropy of the policy over the rollouts that were trained on, nats a token.
    """

    method: str
    seed: int
    steps: np.ndarray
    accuracy: np.ndarray
    sampled: np.ndarray
    greedy: np.ndarray
    rollouts: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray
    effective_rollouts: np.ndarray
    effective_prompts: np.ndarray
    visits: list[dict[str, Any]]
    test_rates: np.ndarray | None
    train_rates: dict[str, float] = field(default_factory=dict)
    per_epoch: float = 0.0
    work: Work | None = None
    eval_entropy: np.ndarray = field(default_factory=lambda: np.full(1, np.nan))
    train_entropy: np.ndarray = field(default_factory=lambda: np.full(1, np.nan))

    @property
    def final(self) -> float:
        """Accuracy at the end."""
        return float(self.accuracy[-1])

    def late(self, per_step: np.ndarray) -> float:
        """Return a mean over the steps after the first epoch, where planners know labels; over all if there are no more."""
        later = per_step[int(np.ceil(self.per_epoch)) :]
        return float(np.nanmean(later if len(later) else per_step))

    def largest_budget(self) -> float:
        """Return the largest budget of any prompt in any step, over the mean budget of its step."""
        return max(max(line["budgets"]) / (sum(line["budgets"]) / len(line["budgets"])) for line in self.visits)

    def hard_rate(self) -> float:
        """Return the final mean success rate of the test prompts that were hard at first; NaN without exact rates."""
        if self.test_rates is None or not (self.test_rates[0] < HARD).any():
            return float("nan")
        return float(self.test_rates[-1][self.test_rates[0] < HARD].mean())

    def last_greedy(self) -> float:
        """Return the greedy accuracy at the end."""
        return float(self.greedy[-1])

    def last_entropy(self) -> float:
        """Return the entropy at the end, nats a token.

        That of responses to test prompts, which are the same for all methods. Where it was not measured, the mean of
        train/entropy over the last tenth of the steps, which is over the rollouts that the method trained on: a method that
        trains on solved prompts too then has less of it for that reason alone.
        """
        if np.isfinite(self.eval_entropy[-1]):
            return float(self.eval_entropy[-1])
        last = self.train_entropy[-max(1, len(self.train_entropy) // 10) :]
        return float(np.nanmean(last)) if np.isfinite(last).any() else float("nan")

    def mastered(self) -> float:
        """Return the final share of the test prompts with a success rate above MASTERED; NaN without exact rates."""
        return float("nan") if self.test_rates is None else float((self.test_rates[-1] > MASTERED).mean())

    def by_difficulty(self) -> np.ndarray:
        """Return the gain in mean success rate of test prompts by that of the start model.

        Returns:
            (bins,) float; NaN where a bin holds no prompt.
        """
        if self.test_rates is None:
            return np.full(len(BIN_NAMES), np.nan)
        where = bin_of(self.test_rates[0])
        gain = self.test_rates[-1] - self.test_rates[0]
        return np.array([gain[where == b].mean() if (where == b).any() else np.nan for b in range(len(BIN_NAMES))])

    def transitions(self) -> np.ndarray:
        """Return (5, 5) counts of prompts by their status at the first visit (rows) and at the last (columns)."""
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
        """Return (S,) rollouts until each step, and (S,) training prompts that were solved at least once by then."""
        solved: set[str] = set()
        spent, counts, total = [], [], 0.0
        for line in self.visits:
            solved |= {i for i, s in zip(line["ids"], line["successes"], strict=True) if s > 0}
            total += sum(line["trials"])
            spent.append(total)
            counts.append(float(len(solved)))
        return np.array(spent), np.array(counts)

    def budgets_by_rate(self) -> tuple[np.ndarray, np.ndarray]:
        """Return exact success rates and budgets of all visits after the first epoch, (V,) each; empty without exact rates."""
        late = self.visits[int(np.ceil(self.per_epoch)) :] or self.visits
        pairs = [(line["p"], line["budgets"]) for line in late if "p" in line]
        if not pairs:
            return np.zeros(0), np.zeros(0)
        return np.concatenate([p for p, _ in pairs]), np.concatenate([np.array(n, float) for _, n in pairs])


def bin_of(rates: np.ndarray) -> np.ndarray:
    """Return the index into BIN_NAMES of each rate, (M,) int."""
    return np.clip(np.searchsorted(BINS, rates, side="right") - 1, 0, len(BIN_NAMES) - 1)


@dataclass
class Results:
    """The finished runs of a study.

    Attributes:
        study: The study.
        runs: Method -> seed -> run, in the study's order; methods without a finished run are left out.
        took: Method -> seconds of each child from its start to its end.
    """

    study: Study
    runs: dict[str, dict[int, Run]]
    took: dict[str, list[float]]

    def seeds(self, method: str, of: Callable[[Run], float]) -> dict[int, float]:
        """Return a number of each run of a method, by seed; empty for a method that was not run."""
        return {seed: of(run) for seed, run in self.runs.get(method, {}).items()}

    def spent(self, run: Run, currency: str) -> np.ndarray:
        """Return what a run spent until each evaluation.

        Args:
            run: The run.
            currency: Of CURRENCIES.

        Returns:
            (T,) float64. FLOPs are in steps of uniform, or FLOPs for each parameter where the study has no such runs; NaN
            where the run did not record them.
        """
        if not currency.startswith("flops"):
            return np.asarray(getattr(run, currency), dtype=np.float64)
        if run.work is None:
            return np.full(len(run.steps), np.nan)
        weighted = currency == "flops_weighted"
        return flops(run.work, self.study.flops, weighted) / self._unit(weighted)

    def share_to_reach(self, run: Run, rival: Run, currency: str) -> float:
        """Return what a run spends until a rival's final accuracy, as a share of all that the rival spends; NaN: never."""
        spent = self.spent(run, currency)
        return cost_to(spent.tolist(), run.accuracy.tolist(), rival.final) / float(self.spent(rival, currency)[-1])

    def _unit(self, weighted: bool) -> float:
        """Return the FLOPs of a step of uniform, the mean over its runs; 1 without them."""
        known = [run for run in self.runs.get("uniform", {}).values() if run.work is not None and run.steps[-1]]
        each = [flops(run.work, self.study.flops, weighted)[-1] / run.steps[-1] for run in known if run.work]
        return float(np.mean(each)) if each else 1.0


def read_results(study: Study) -> Results:
    """Read the results of the children that are done."""
    runs: dict[str, dict[int, Run]] = {}
    took: dict[str, list[float]] = {}
    for method in study.methods:
        for child in study.children:
            done = child.result() if child.method == method else None
            if done is not None:
                updates = child.config.train.updates
                runs.setdefault(method, {})[child.seed] = read_run(child.folder, method, child.seed, updates)
                took.setdefault(method, []).append(done["took_s"])
    return Results(study, runs, took)


def read_run(folder: Path, method: str, seed: int, updates: int = 1) -> Run:
    """Read the results of a child from its folder.

    Args:
        folder: Of the child.
        method: Of the child.
        seed: Of the child.
        updates: train.updates.
    """
    lines = list(_lines(folder / "metrics.jsonl"))
    steps = [line for line in lines if line["step"] > 0 and TIMING_S_STEP in line]
    seconds = np.cumsum([0.0, *(line[TIMING_S_STEP] - line.get(TIMING_S_EXACT, 0.0) for line in steps)])
    evaluated = [line for line in lines if EVAL_ACCURACY in line]
    at = np.array([line["step"] for line in evaluated])
    spent = {
        name: np.array([0.0, *(line[name] for line in steps)])[at] for name in (PROGRESS_ROLLOUTS, PROGRESS_TOKENS)
    }
    rates = list(_lines(folder / RATES)) if (folder / RATES).is_file() else []
    sampled = np.array([line[EVAL_ACCURACY] for line in evaluated])
    visits = list(_lines(folder / VISITS))
    epoch = steps[-1][PROGRESS_EPOCH] / steps[-1]["step"] if steps else 1.0

    def each(name: str, of: list[dict[str, Any]]) -> np.ndarray:
        return np.array([line.get(name, np.nan) for line in of], dtype=np.float64)

    return Run(
        method=method,
        seed=seed,
        steps=at,
        accuracy=np.array([line[EVAL_EXACT_ACCURACY] for line in evaluated]) if rates else sampled,
        sampled=sampled,
        greedy=each(EVAL_GREEDY_ACCURACY, evaluated),
        rollouts=spent[PROGRESS_ROLLOUTS],
        tokens=spent[PROGRESS_TOKENS],
        seconds=seconds[at],
        effective_rollouts=each(GROUP_EFFECTIVE_RATIO_ROLLOUTS, steps),
        effective_prompts=each(GROUP_EFFECTIVE_RATIO_PROMPTS, steps),
        visits=visits,
        test_rates=np.array([line["test"] for line in rates]) if rates else None,
        train_rates=rates[0].get("train", {}) if rates else {},
        per_epoch=1 / epoch,
        work=read_work(steps, updates).at(at) if any(TRAIN_ROWS in line for line in steps) else None,
        eval_entropy=each(EVAL_ENTROPY, evaluated),
        train_entropy=each(TRAIN_ENTROPY, steps),
    )


def read_work(steps: list[dict[str, Any]], updates: int) -> Work:
    """Return what was done until each step.

    Rows are counted at each pass by the learner. Their prompts are those that the learner counted; runs that are older than
    this count have those of the groups with a gradient, at each pass, and at most one a row.

    Args:
        steps: S lines of metrics.jsonl.
        updates: train.updates.

    Returns:
        (S + 1,) each, from 0 at the beginning.
    """

    def each(name: str, default: float = 0.0) -> np.ndarray:
        return np.array([line.get(name, default) for line in steps], dtype=np.float64)

    rows, prompts, passes = each(TRAIN_ROWS), each(PLANNER_ADMITTED), np.maximum(each(TRAIN_EPOCHS, 1.0), 1.0)
    estimated = np.minimum(each(TRAIN_GROUPS_RATIO) * prompts * passes, rows)
    counted = each(TRAIN_PROMPTS, np.nan)
    row_prompts = np.where(np.isfinite(counted), counted, estimated)
    old = 1.0 / passes if updates > 1 else np.zeros(len(steps))
    rollouts = np.diff(each(PROGRESS_ROLLOUTS), prepend=0.0)
    parts = (rollouts, prompts, rows, row_prompts, rows * old, row_prompts * old)
    return Work(*(np.concatenate([[0.0], np.cumsum(part)]) for part in parts))


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    with path.open() as file:
        for line in file:
            yield json.loads(line)
