"""Metrics of one step's plan, computed from its labels: pure functions that return floats to be logged.

The effective-gradient ratio is always given both ways. Weighted by rollouts it is the headline of the paper (arXiv
2509.25849), and it can rise while fewer prompts contribute to the gradient; weighted by prompts it cannot.
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
    BUDGET_SHARE,
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
from kray.records import Allocation

STATUSES = ("never_solved", "hard", "medium", "easy", "always_solved")


def status(successes: ArrayLike, trials: ArrayLike) -> np.ndarray:
    """Classify each prompt by the labels of one visit.

    never_solved: rate 0; hard: at most .2; medium: between; easy: at least .8; always_solved: rate 1.

    Args:
        successes: (M,).
        trials: (M,).

    Returns:
        (M,) int64 index into STATUSES, -1 without labels.
    """
    s, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    rate = np.divide(s, n, out=np.zeros(n.shape), where=n > 0)
    out = np.select([s <= 0, s >= n, rate <= 0.2, rate >= 0.8], [0, 4, 1, 3], 2)
    return np.where(n > 0, out, -1).astype(np.int64)


def transition_matrix(before: ArrayLike, after: ArrayLike) -> np.ndarray:
    """Count the prompts that went from status i to status j between visits, (5, 5) int64; those without either are left out."""
    i, j = np.asarray(before, dtype=np.int64), np.asarray(after, dtype=np.int64)
    known = (i >= 0) & (j >= 0)
    k = len(STATUSES)
    return np.bincount(i[known] * k + j[known], minlength=k * k).reshape(k, k)


def step_metrics(
    allocation: Allocation, successes: ArrayLike, trials: ArrayLike, previous_status: ArrayLike | None = None
) -> dict[str, float]:
    """Compute the metrics of one step's plan: rollouts per prompt and status, effective ratios, values and the Brier score.

    Args:
        allocation: the plan of M prompts.
        successes: (M,) sums of the rewards that came back, in the order of the plan.
        trials: (M,) their numbers, below the budgets where rollouts were lost.
        previous_status: (M,) `status` of each prompt's previous visit, which the plan could know; without it
            budget/share_<status> is by this step's own labels.

    Returns:
        Metric name -> number (kray/metrics/ has their meanings); NaN where there is nothing to measure.
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
        out[BUDGET_SHARE.of(name)] = _ratio(rollouts, budgets.sum())
    out[GROUP_EFFECTIVE_RATIO_ROLLOUTS] = _ratio(n[mixed].sum(), n.sum())
    out[GROUP_EFFECTIVE_RATIO_PROMPTS] = _ratio(mixed.sum(), len(budgets))
    out[PLANNER_VALUE_PLANNED] = float(np.sum(allocation.expected_value))
    out[PLANNER_VALUE_REALISED] = float((rate * (1 - rate) ** 2).sum())
    out[PLANNER_BRIER] = calibration(allocation.expected_success, s, n)["brier"]
    return out


class CalibrationTally:
    """Calibration of the beliefs since the last `clear`, say over an epoch. It holds sums only, so steps add exactly."""

    def __init__(self, bins: int = 10):
        """Make an empty tally with so many bins of the predicted rate."""
        self.bins = bins
        self.clear()

    def clear(self) -> None:
        """Forget everything that was added."""
        # rollouts, their predicted and their observed successes, by predicted rate
        self._sums = np.zeros((3, self.bins))
        self._brier = 0.0

    def add(self, expected_success: ArrayLike, successes: ArrayLike, trials: ArrayLike) -> None:
        """Add one step's predictions and labels, (M,) each."""
        found = calibration(expected_success, successes, trials, self.bins)
        n = found["trials"]
        self._sums += np.nan_to_num([n, n * found["predicted"], n * found["observed"]])
        if n.any():
            self._brier += found["brier"] * float(n.sum())

    def metrics(self) -> dict[str, float]:
        """Return planner/epoch_brier, planner/epoch_calibration_error and the rates of each bin that is not empty."""
        n, predicted, observed = self._sums
        out: dict[str, float] = {
            PLANNER_EPOCH_BRIER: _ratio(self._brier, n.sum()),
            PLANNER_EPOCH_CALIBRATION_ERROR: _ratio(np.abs(predicted - observed).sum(), n.sum()),
        }
        for k in np.flatnonzero(n).tolist():
            out[PLANNER_PREDICTED.of(k)] = _ratio(predicted[k], n[k])
            out[PLANNER_OBSERVED.of(k)] = _ratio(observed[k], n[k])
        return out

    def to_dict(self) -> dict[str, object]:
        """Return the sums for a checkpoint."""
        return {"sums": self._sums.tolist(), "brier": self._brier}

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `to_dict` returned."""
        self._sums, self._brier = np.array(state["sums"], dtype=np.float64), float(state["brier"])


def calibration(predicted: ArrayLike, successes: ArrayLike, trials: ArrayLike, bins: int = 10) -> dict[str, Any]:
    """Measure how well predicted success rates agree with labels that came after them.

    Args:
        predicted: (M,) in [0, 1]; prompts with anything not finite are left out.
        successes: (M,) labels counted as 0 or 1.
        trials: (M,).
        bins: equal parts of [0, 1] by predicted rate.

    Returns:
        `brier`, the mean over rollouts of (label - predicted)^2 (NaN without rollouts), and (bins,) each of `trials`,
        `predicted` and `observed` success rate, weighted by trials (NaN where empty).
    """
    p, s, n = (np.asarray(x, dtype=np.float64) for x in (predicted, successes, trials))
    if not (p.ndim == 1 and p.shape == s.shape == n.shape):
        raise ValueError(f"predicted, successes, trials must be (M,) alike; got {p.shape}, {s.shape}, {n.shape}")
    keep = (n > 0) & np.isfinite(p) & np.isfinite(s) & np.isfinite(n)
    p, s, n = p[keep], s[keep], n[keep]
    total = n.sum()
    brier = float((s * (1 - p) ** 2 + (n - s) * p**2).sum() / total) if total else float("nan")
    bin_ = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(bin_, n, bins)
    with np.errstate(invalid="ignore"):
        expected, observed = np.bincount(bin_, n * p, bins) / count, np.bincount(bin_, s, bins) / count
    return {"brier": brier, "trials": count, "predicted": expected, "observed": observed}


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")
