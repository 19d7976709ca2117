"""The planner's checks of the configuration's `plan` section, with messages that name its keys."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from kray.plan_modes import GAINS, MARGINALS, MODES, UNITS, VALUES, WEIGHTS, PlanConfig, contradictions, settle
from kray.planner.beliefs import Beliefs

# Keys that hold whole numbers, with the least value of each.
LEAST = {
    "budget": 0,
    "lower": 0,
    "upper": 0,
    "token_budget": 0,
    "in_flight": 0,
    "pilot": 0,
    "target_groups": 0,
    "target_size": 2,
    "rounds": 1,
    "refit_every": 1,
}
CHOICES = {"mode": MODES, "value": VALUES, "gain": GAINS, "marginal": MARGINALS, "weights": WEIGHTS, "unit": UNITS}


def checked_plan(plan: Any) -> PlanConfig:
    """Copy the settings of a planner and check them.

    Args:
        plan: anything with the keys of PlanConfig as attributes, none of them still to be chosen.

    Raises:
        ValueError: a value is not allowed, or two do not go together; the message names the key.
    """
    copy = PlanConfig(**{field.name: getattr(plan, field.name) for field in fields(PlanConfig)})
    for key, known in CHOICES.items():
        if getattr(copy, key) not in known:
            raise ValueError(f"plan.{key}={getattr(copy, key)} is not one of {', '.join(known)}")
    for key, least in LEAST.items():
        x = getattr(copy, key)
        if x != int(x) or x < least:
            raise ValueError(f"plan.{key}={x} must be a whole number of rollouts >= {least}")
    if not 0 <= copy.tau < float("inf"):
        raise ValueError(f"plan.tau={copy.tau} must be finite and not negative")
    if not (copy.candidates >= 1 or copy.candidates == 0):
        raise ValueError(f"plan.candidates={copy.candidates} must be at least 1, or 0 for all training prompts")
    for _, message in contradictions(copy):
        raise ValueError(message)
    return copy


def chosen_plan(plan: Any) -> PlanConfig:
    """Copy a `plan` section, choose what it leaves open, and check it.

    Args:
        plan: anything with the keys of PlanConfig as attributes.

    Raises:
        ValueError: as in `checked_plan`.
    """
    copy = PlanConfig(**{field.name: getattr(plan, field.name) for field in fields(PlanConfig)})
    settle(copy)
    return checked_plan(copy)


def make_beliefs(plan: PlanConfig) -> Beliefs:
    """Return new beliefs with the prior and the discounts of a `plan` section."""
    return Beliefs(plan.discount, plan.prior_alpha, plan.prior_beta, plan.fit_prior, plan.fit_discount)
