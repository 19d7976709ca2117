"""Rival ways to spend a step's budget, as pure functions of one request.

Each spends exactly request.budget within [lower, upper]; the planner asserts it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kray.planner.beliefs import Beliefs
from kray.planner.solver import solve, spread
from kray.planner.values import BetaValue, PointValue


@dataclass(frozen=True)
class PlanRequest:
    """One step to plan: M prompts whose visit has begun, a feasible budget and bounds in rollouts, what is believed."""

    prompt_ids: list[str]
    budget: int
    lower: int
    upper: int
    beliefs: Beliefs
    value: BetaValue  # of the M prompts, at their posteriors


def uniform(request: PlanRequest) -> np.ndarray:
    """The budget split evenly, (M,) int64; the first prompts of the step get the remainder, one each."""
    m = len(request.prompt_ids)
    each, over = divmod(request.budget, max(m, 1))
    return each + (np.arange(m) < over).astype(np.int64)


def paper(request: PlanRequest) -> np.ndarray:
    """Knapsack RL as published, arXiv 2509.25849, (M,) int64.

    A prompt's success rate is the plain ratio of its latest visit. Prompts without one get their uniform share, so the
    first epoch is uniform; solved prompts (rate 1) get `lower`; the knapsack with the point value spends the rest on
    prompts in between; what it leaves once these are at `upper` goes evenly to unsolved prompts (rate 0).
    Departures: the knapsack is solved exactly (the authors' dynamic programme scores "no extra rollout" as 0); the
    fallback respects `upper` and gives unseen prompts nothing twice (theirs does neither); if unsolved prompts are
    full too, the last rollouts go evenly to solved ones, so that the budget is always spent.
    """
    successes, trials = request.beliefs.last_visit(request.prompt_ids)
    budgets = uniform(request)
    seen = trials > 0
    left = int(budgets[seen].sum())
    budgets[seen] = request.lower
    left -= int(budgets[seen].sum())
    between = seen & (successes > 0) & (successes < trials)
    unsolved, solved = seen & (successes == 0), seen & (successes == trials)
    room = request.upper - request.lower
    share = min(left, room * int(between.sum()))
    rate = successes[between] / trials[between]
    if between.any():
        bought = request.lower * int(between.sum()) + share
        budgets[between] = solve(PointValue(rate), bought, request.lower, request.upper)
    left -= share
    for group in (unsolved, solved):
        share = min(left, room * int(group.sum()))
        if share:
            upper = np.full(int(group.sum()), request.upper)
            budgets[group] = spread(budgets[group], upper, share)
        left -= share
    return budgets
