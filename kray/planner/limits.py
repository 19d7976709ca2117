"""Limits of a step: the rollouts that each prompt gets in any case, their costs, and the budgets that can be met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from kray.plan_modes import PlanConfig, due_must_fit, offered_share, smallest_group


@dataclass(frozen=True)
class StepRequest:
    """A step of M prompts that has been checked.

    Attributes:
        ids: M of them.
        budget: of the step, in plan.unit.
        cost: (M,) of one rollout, in plan.unit.
        least: (M,) int64 rollouts that each prompt gets in any case.
        upper: (M,) int64 most rollouts of each prompt.
        labels: M names of the groups whose prior each prompt has; None: unchanged.
        features: (M, d), or None.
    """

    ids: Sequence[str]
    budget: float
    cost: np.ndarray
    least: np.ndarray
    upper: np.ndarray
    labels: Sequence[str] | None
    features: ArrayLike | None


def leaves_out_prompts(plan: PlanConfig) -> bool:
    """Return whether a prompt that is offered may get no rollouts."""
    return offered_share(plan) > 1


def first_block(plan: PlanConfig) -> int:
    """Return the rollouts that open a prompt: at least as many as teach something together, where plan.upper allows."""
    return min(max(plan.lower, smallest_group(plan)), plan.upper)


def most_due(plan: PlanConfig) -> int | None:
    """Return how many prompts may be due in a step, so that the budget pays for them; None: any number.

    A budget of tokens is raised where prompts that are due need more (kray/driver/step.py).
    """
    if due_must_fit(plan) or plan.mode == "dynamic_sampling" or plan.unit == "tokens":
        return None
    return max(1, plan.budget // max(1, first_block(plan)))


def rollout_costs(plan: PlanConfig, m: int, cost: ArrayLike | None) -> np.ndarray:
    """Return the cost of one rollout of each of m prompts in plan.unit, (m,) float64.

    Args:
        plan: the settings.
        m: number of prompts.
        cost: (m,) expected response tokens; ignored where the budget counts rollouts.

    Raises:
        ValueError: the cost is missing, malformed, or not positive and finite.
    """
    if plan.unit == "rollouts":
        return np.ones(m)
    if cost is None:
        raise ValueError("cost is needed: plan.unit=tokens counts expected response tokens of each prompt")
    prices = np.asarray(cost, dtype=np.float64)
    if prices.shape != (m,) or not ((prices > 0) & np.isfinite(prices)).all():
        raise ValueError(f"cost must be ({m},), positive and finite")
    return prices


def least_rollouts(plan: PlanConfig, m: int, due: ArrayLike | None) -> np.ndarray:
    """Return the rollouts that each of m prompts gets in any case, (m,) int64.

    Args:
        plan: the settings.
        m: number of prompts.
        due: (m,) bool, prompts that must be visited where others may be left out; None: no prompt.

    Raises:
        ValueError: due has another shape.
    """
    must = np.zeros(m, dtype=bool) if due is None else np.asarray(due, dtype=bool)
    if must.shape != (m,):
        raise ValueError(f"due must have shape ({m},); got {must.shape}")
    if leaves_out_prompts(plan):
        return np.where(must, first_block(plan), 0).astype(np.int64)
    return np.full(m, plan.lower, dtype=np.int64)


def feasible_budget(plan: PlanConfig, budget: float | None, cost: np.ndarray, least: np.ndarray) -> float:
    """Return the budget of a step of M prompts, in plan.unit.

    Args:
        plan: the settings.
        budget: None: the configured one.
        cost: (M,) of one rollout.
        least: (M,) rollouts that each prompt gets in any case.

    Raises:
        ValueError: the budget is malformed, or the bounds cannot be met; the message names the key.
    """
    key = "plan.token_budget" if plan.unit == "tokens" else "plan.budget"
    if budget is None:
        budget = plan.token_budget if plan.unit == "tokens" else plan.budget
    if not (budget >= 0 and np.isfinite(budget) and (plan.unit == "tokens" or budget == int(budget))):
        raise ValueError(f"{key}={budget} must be a whole number of {plan.unit} >= 0")
    m, leaves_out = len(cost), leaves_out_prompts(plan)
    # in dynamic_sampling the prompts that are due come on top of the budget
    needed = 0.0 if plan.mode == "dynamic_sampling" and leaves_out else float(cost @ least)
    if budget < needed and leaves_out:
        raise ValueError(f"{key}={budget} is less than {needed:g}, the first blocks of the prompts that are due")
    if budget < needed:
        raise ValueError(
            f"{key}={budget} is less than plan.lower={plan.lower} for each of {m} prompts; "
            f"raise {key} to {needed:g} or lower plan.lower"
        )
    if plan.unit == "rollouts" and budget > plan.upper * m:
        raise ValueError(
            f"plan.budget={budget} is more than plan.upper={plan.upper} for each of {m} prompts; "
            f"lower plan.budget to {plan.upper * m} or raise plan.upper (or plan.lower and prompts.per_step)"
        )
    return float(budget)
