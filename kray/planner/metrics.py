"""What one step's plan was worth, from its labels: pure functions, floats out, ready to be logged.

The effective-gradient ratio is always given both ways. Weighted by rollouts it is the paper's headline (arXiv
2509.25849), and it can rise while fewer prompts teach; weighted by prompts it cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kray.metrics import (
    BUDGET_MAX,
    BUDGET_MIN,
    BUDGET_P50,
    BUDGET_P99,
    GROUP_EFFECTIVE_RATIO_PROMPTS,
    GROUP_EFFECTIVE_RATIO_ROLLOUTS,
    PLANNER_BRIER,
    PLANNER_EPOCH_BRIER,
    PLANNER_EPOCH_CALIBRATION_ERROR,
    PLANNER_OBSERVED,
    PLANNER_PREDICTED,
    PLANNER_VALUE_PLANNED,
    PLANNER_VALUE_REALISED,
)
from kray.planner.beliefs import calibration
from kray.records import Allocation

STATUSES = ("never_solved", "hard", "medium", "easy", "always_solved")


def status(successes: ArrayLike, trials: ArrayLike) -> np.ndarray:
    """Status of each prompt from the labels of one visit, (M,) int64: index into STATUSES, -1 without labels.

    never_solved: rate 0; hard: <= .2; medium: between; easy: >= .8; always_solved: rate 1.
    """
    s, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    rate = np.divide(s, n, out=np.zeros(n.shape), where=n > 0)
    out = np.select([s <= 0, s >= n, rate <= 0.2, rate >= 0.8], [0, 4, 1, 3], 2)
    return np.where(n > 0, out, -1).astype(np.int64)


def transition_matrix(before: ArrayLike, after: ArrayLike) -> np.ndarray:
    """Prompts that went from status i to status j between visits, (5, 5) int64; those without either are left out."""
    i, j = np.asarray(before, dtype=np.int64), np.asarray(after, dtype=np.int64)
    known = (i >= 0) & (j >= 0)
    k = len(STATUSES)
    return np.bincount(i[known] * k + j[known], minlength=k * k).reshape(k, k)


def step_metrics(
    allocation: Allocation, successes: ArrayLike, trials: ArrayLike, previous_status: ArrayLike | None = None
) -> dict[str, float]:
    """Metrics of one step; NaN where there is nothing to measure.

    successes, trials (M,): labels that came back, in the order of the plan (trials falls short of the budget where
    rollouts were lost; graded rewards are summed). previous_status (M,): `status` of each prompt's previous visit, what
    the plan could know; without it shares are by this step's own labels.

    budget/min p50 p99 max     rollouts per prompt, as planned
    budget/share_<status>      share of the planned rollouts on prompts of that status; share_unlabelled for the rest
    group/effective_ratio_rollouts   rollouts in groups with a success and a failure / all rollouts that came back
    group/effective_ratio_prompts    such groups / all prompts of the plan
    planner/value_planned      sum of the expected value at planning time
    planner/value_realised     sum of p (1 - p)^2 at the observed rate p over the groups that are mixed; same unit
    planner/brier              mean squared error of expected_success over rollouts
    """
    s, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    budgets = np.asarray(allocation.budgets, dtype=np.float64)
    if not s.shape == n.shape == budgets.shape:
        raise ValueError(f"successes and trials must be {budgets.shape} like the plan; got {s.shape} and {n.shape}")
    mixed = (s > 0) & (s < n)
    rate = s[mixed] / n[mixed]
    by = status(s, n) if previous_status is None else np.asarray(previous_status, dtype=np.int64)
    spent = np.bincount(by + 1, budgets, len(STATUSES) + 1)
    quantiles = np.percentile(budgets, [0, 50, 99, 100]) if len(budgets) else np.full(4, np.nan)
    names = (BUDGET_MIN, BUDGET_P50, BUDGET_P99, BUDGET_MAX)
    out = dict(zip(names, quantiles.tolist(), strict=True))
    for name, rollouts in zip(("unlabelled", *STATUSES), spent, strict=True):
        out[f"budget/share_{name}"] = _ratio(rollouts, budgets.sum())
    out[GROUP_EFFECTIVE_RATIO_ROLLOUTS] = _ratio(n[mixed].sum(), n.sum())
    out[GROUP_EFFECTIVE_RATIO_PROMPTS] = _ratio(mixed.sum(), len(budgets))
    out[PLANNER_VALUE_PLANNED] = float(np.sum(allocation.expected_value))
    out[PLANNER_VALUE_REALISED] = float((rate * (1 - rate) ** 2).sum())
    out[PLANNER_BRIER] = calibration(allocation.expected_success, s, n)["brier"]
    return out


class CalibrationTally:
    """How well beliefs have predicted labels since the last `clear`, say over an epoch: counts only, so it adds exactly."""

    def __init__(self, bins: int = 10):
        self.bins = bins
        self.clear()

    def clear(self) -> None:
        self._sums = np.zeros(
            (3, self.bins)
        )  # rollouts, their predicted and their observed successes, by predicted rate
        self._brier = 0.0

    def add(self, expected_success: ArrayLike, successes: ArrayLike, trials: ArrayLike) -> None:
        """One step's predictions and labels, (M,) each."""
        found = calibration(expected_success, successes, trials, self.bins)
        n = found["trials"]
        self._sums += np.nan_to_num([n, n * found["predicted"], n * found["observed"]])
        if n.any():
            self._brier += found["brier"] * float(n.sum())

    def metrics(self) -> dict[str, float]:
        """planner/epoch_brier: mean squared error over rollouts; planner/epoch_calibration_error: mean |predicted - observed|
        success rate over rollouts, by tenths of the predicted; planner/predicted_<k>, planner/observed_<k>: rates in the
        k-th tenth (NaN where empty)."""
        n, predicted, observed = self._sums
        out: dict[str, float] = {
            PLANNER_EPOCH_BRIER: _ratio(self._brier, n.sum()),
            PLANNER_EPOCH_CALIBRATION_ERROR: _ratio(np.abs(predicted - observed).sum(), n.sum()),
        }
        for k in range(self.bins):
            out[PLANNER_PREDICTED.of(k)] = _ratio(predicted[k], n[k])
            out[PLANNER_OBSERVED.of(k)] = _ratio(observed[k], n[k])
        return out

    def to_dict(self) -> dict[str, object]:
        return {"sums": self._sums.tolist(), "brier": self._brier}

    def load_dict(self, state: Mapping[str, Any]) -> None:
        self._sums, self._brier = np.array(state["sums"], dtype=np.float64), float(state["brier"])


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")
