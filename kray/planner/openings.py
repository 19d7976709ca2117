"""Budgets at the beginning of a step, and rules that depend on no marginal gains, for KnapsackPlanner."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kray.plan_modes import PlanConfig
from kray.planner.greedy import RolloutBudget
from kray.planner.limits import StepRequest
from kray.planner.modes import Commit, Even, Rule, Waves, fill
from kray.planner.solver import solve
from kray.planner.step_plan import StepPlan
from kray.planner.values import Value


def budgets_in_tokens(
    plan: PlanConfig, make: Callable[[int], np.ndarray], value: Value, request: StepRequest
) -> np.ndarray:
    """Return budgets of a mode that plans at once, whose expected tokens are at most `budget`; no further rollout fits.

    Args:
        plan: the settings.
        make: returns the mode's own plan for a budget in rollouts, (M,) int64.
        value: of the M prompts.
        request: the step, whose budget and costs are in tokens.

    Returns:
        (M,) int64 rollouts.
    """
    budget, cost, m = request.budget, request.cost, len(request.cost)
    if plan.mode == "static":
        held = solve(value, budget, request.least, request.upper, cost)
    else:
        # binary search for the mode's own plan for as many rollouts as the tokens pay for
        low, high = plan.lower * m, plan.upper * m
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if cost @ make(middle) <= budget else (low, middle - 1)
        held = make(low)
    return fill(held, request.upper, cost, budget - float(cost @ held))


def nothing(budget: RolloutBudget, value: Value, step: StepPlan) -> Rule:
    """Return the rule that allocates nothing more."""
    return Rule()


def evenly(budget: RolloutBudget, value: Value, step: StepPlan) -> Rule:
    """Return the rule that spreads what comes back."""
    return Even(budget)


def commit(budget: RolloutBudget, value: Value, step: StepPlan) -> Rule:
    """Return the rule of pilot_commit."""
    return Commit(budget, step)


def waves(groups: int, size: int, kept: int, budget: RolloutBudget, value: Value, step: StepPlan) -> Rule:
    """Return the rule of dynamic_sampling (kray/planner/modes.py)."""
    return Waves(budget, step, groups, size, kept)
