"""Budgets of one step from what a client knows about each prompt; keeps no state. Pure: no Ray, no HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from kray.plan_modes import GROUP_LOWER, GROUP_VALUE, PlanConfig
from kray.planner import BaselineValue, BetaValue, CobaValue, GrpoValue, PointValue, solve
from kray.planner.beliefs import PRIOR_PROMPTS
from kray.planner.priors import fit_beta_binomial
from kray.planner.values import Value
from kray.serve.gate import Refusal


@dataclass(frozen=True, slots=True)
class AllocationRequest:
    """A budget and what is known of M prompts: success rates, Beta beliefs (alpha, beta), or counts (successes, trials).

    Attributes:
        budget: Rollouts; with `cost`, an upper limit in its unit.
        lower: Fewest rollouts of a prompt, or (M,).
        upper: Most rollouts of a prompt, or (M,).
        cost: (M,) cost of one rollout; None: 1 each.
        value: What the allocation maximises, one of kray.plan_modes.VALUES.
        gain: plan.gain, for the value baseline.
        tau: plan.tau, for the same.
        success_rate: (M,) in [0, 1].
        alpha: (M,) successes of the beliefs.
        beta: (M,) failures of the beliefs.
        successes: (M,) observed successes.
        trials: (M,) observed rollouts.
        prior: (alpha, beta) added to the counts; None: fitted to them where there are enough, else uniform.
    """

    budget: float
    lower: int | Sequence[int] = GROUP_LOWER
    upper: int | Sequence[int] = PlanConfig.upper
    cost: Sequence[float] | None = None
    value: str = GROUP_VALUE
    gain: str = PlanConfig.gain
    tau: float = PlanConfig.tau
    success_rate: Sequence[float] | None = None
    alpha: Sequence[float] | None = None
    beta: Sequence[float] | None = None
    successes: Sequence[float] | None = None
    trials: Sequence[float] | None = None
    prior: tuple[float, float] | None = None


def allocate(request: AllocationRequest) -> dict[str, Any]:
    """Solve for the budgets of one step.

    Returns:
        JSON-compatible "budgets", "expected_value" and "expected_success" (M,), "rollouts" (the sum of the budgets) and,
        for counts, the "prior" that was used.

    Raises:
        Refusal: The request contradicts itself or has no solution.
    """
    with planner_refusals():
        prior = None
        if request.success_rate is not None:
            if request.value != "paper":
                raise ValueError(
                    f"value {request.value} is an expectation under a belief: give alpha and beta, or counts"
                )
            value: Value = PointValue(request.success_rate)
            expected = np.asarray(request.success_rate, dtype=np.float64)
        else:
            alpha, beta, prior = _beliefs(request)
            value = _value(request, alpha, beta)
            expected = alpha / (alpha + beta)
        cost = None if request.cost is None else np.asarray(request.cost)
        budgets = solve(value, request.budget, np.asarray(request.lower), np.asarray(request.upper), cost)
    found = {"budgets": budgets.tolist(), "expected_value": value.total(budgets).tolist()}
    found |= {"expected_success": expected.tolist(), "rollouts": int(budgets.sum())}
    return found | ({"prior": list(prior)} if prior else {})


def _beliefs(request: AllocationRequest) -> tuple[np.ndarray, np.ndarray, tuple[float, float] | None]:
    """Return alpha, beta (M,) and the prior that was added to counts."""
    if request.successes is None:
        return np.asarray(request.alpha, dtype=np.float64), np.asarray(request.beta, dtype=np.float64), None
    successes, trials = (np.asarray(x, dtype=np.float64) for x in (request.successes, request.trials))
    prior = request.prior or _fitted_prior(successes, trials)
    return prior[0] + successes, prior[1] + trials - successes, prior


def _fitted_prior(successes: np.ndarray, trials: np.ndarray) -> tuple[float, float]:
    """Return the Beta prior that fits the counts (M,), or the uniform one where too few prompts have counts."""
    seen = trials > 0
    fitted = fit_beta_binomial(successes[seen], trials[seen]) if np.count_nonzero(seen) >= PRIOR_PROMPTS else None
    return fitted or (1.0, 1.0)


def _value(request: AllocationRequest, alpha: np.ndarray, beta: np.ndarray) -> Value:
    if request.value == "baseline":
        return BaselineValue(alpha, beta, request.gain, request.tau)
    if request.value == "grpo":
        return GrpoValue(alpha, beta)
    if request.value == "coba":
        return CobaValue(alpha, beta, float(np.mean(beta / (alpha + beta))))
    return BetaValue(alpha, beta)


@contextmanager
def planner_refusals(field_name: str = "", done: int = 0) -> Iterator[None]:
    """Turn the planner's ValueErrors into refusals that name a field of the request.

    Args:
        field_name: The field; "": the one that the error begins with.
        done: Entries of a list that were processed before this one.
    """
    try:
        yield
    except ValueError as error:
        text = str(error).replace("plan.token_budget", "budget").replace("plan.", "")
        key = field_name or re.split(r"[^a-z_]", text, maxsplit=1)[0]
        if field_name:
            text = f"{field_name}: {text}" + (f" (the {done} before it were taken)" if done else "")
        raise Refusal(422, text, "invalid", key) from error
