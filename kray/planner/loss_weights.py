"""Weights of the prompts of a step in the loss (plan.weights)."""

from __future__ import annotations

import numpy as np

from kray.plan_modes import PlanConfig
from kray.planner.solver import solve
from kray.planner.values import Value


def loss_weights(plan: PlanConfig, budgets: np.ndarray, trained: np.ndarray, value: Value) -> np.ndarray:
    """Compute each prompt's weight in the loss.

    Weights sum to the rollouts of the prompts that are trained on, so leaving some out does not change the loss's scale.

    Args:
        plan: the settings; mode weight_only has the weights `knapsack`.
        budgets: (M,) int64 rollouts of each prompt.
        trained: (M,) bool, the prompts that are trained on.
        value: of the M prompts, by which `knapsack` and `hindsight` divide the rollouts.

    Returns:
        (M,) float64; 0 leaves a group out of the loss and of its denominator.
    """
    weights = np.zeros(len(budgets))
    if not trained.any():
        return weights
    kind = "knapsack" if plan.mode == "weight_only" else plan.weights
    if kind == "rollouts":
        weights[trained] = budgets[trained]
    elif kind == "uniform":
        weights[trained] = budgets[trained].sum() / trained.sum()
    else:
        rows, rollouts = np.flatnonzero(trained), int(budgets[trained].sum())
        # at least one rollout each, since a weight of 0 would leave the group out
        low = min(max(plan.lower, 1), rollouts // len(rows))
        high = max(plan.upper, -(-rollouts // len(rows)))
        weights[rows] = solve(_Subset(value, rows), rollouts, low, high)
    return weights


class _Subset:
    """Some prompts of a value, as a value of their own."""

    def __init__(self, value: Value, rows: np.ndarray):
        self._value, self._rows = value, rows
        self.smallest_group = value.smallest_group

    def __len__(self) -> int:
        return len(self._rows)

    def gain_at(self, rows: np.ndarray, n: np.ndarray) -> np.ndarray:
        return self._value.gain_at(self._rows[rows], n)

    def gain(self, n: np.ndarray) -> np.ndarray:
        return self.gain_at(np.arange(len(self)), n)

    def total(self, n: np.ndarray) -> np.ndarray:
        whole = np.zeros(len(self._value), dtype=np.int64)
        whole[self._rows] = n
        return self._value.total(whole)[self._rows]
