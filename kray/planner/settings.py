"""How steps are planned: one frozen record of the configuration's `plan` section, checked. Messages name its keys."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from kray.planner.beliefs import Beliefs
from kray.planner.marginals import MARGINALS

MODES = (
    "static",
    "online",
    "rounds",
    "uniform",
    "paper",
    "paper_released",
    "dynamic_sampling",
    "coba",
    "pilot_commit",
    "weight_only",
)
NEED_LABELS = ("rounds", "dynamic_sampling", "pilot_commit")  # modes whose plan is made of this step's labels
RESPEND = ("static", "online", "rounds")  # modes that give a lost rollout's budget to another prompt
ADMITTING = ("static", "online", "dynamic_sampling")  # modes that may leave a candidate without rollouts
VALUES = ("paper", "grpo", "coba")
WEIGHTS = ("rollouts", "uniform", "knapsack")
UNITS = ("rollouts", "tokens")


@dataclass(frozen=True)
class Settings:
    """The keys of `plan` that decide budgets and weights; see config/schema.py for their meaning and units."""

    mode: str = "static"
    budget: int = 512
    lower: int = 2
    upper: int = 128
    unit: str = "rollouts"
    token_budget: int = 0
    value: str = "paper"
    marginal: str = "expected_gain"
    target_size: int = 8
    in_flight: int = 0
    pilot: int = 4
    rounds: int = 2
    weights: str = "rollouts"
    candidates: float = 1.0
    target_groups: int = 0
    refit_every: int = 1

    def __post_init__(self) -> None:
        for key, known in (("mode", MODES), ("value", VALUES), ("marginal", MARGINALS), ("weights", WEIGHTS)):
            if getattr(self, key) not in known:
                raise ValueError(f"plan.{key}={getattr(self, key)} is not one of {', '.join(known)}")
        if self.unit not in UNITS:
            raise ValueError(f"plan.unit={self.unit} is not one of {', '.join(UNITS)}")
        least = {"target_size": 2, "rounds": 1, "refit_every": 1, "candidates": 1}
        for key in ("budget", "lower", "upper", "token_budget", "in_flight", "pilot", "target_groups", *least):
            x = getattr(self, key)
            whole = key == "candidates" or x == int(x)
            if not (whole and x >= least.get(key, 0)):
                raise ValueError(f"plan.{key}={x} must be a whole number of rollouts >= {least.get(key, 0)}")
        for message in contradictions(self):
            raise ValueError(message)

    @classmethod
    def of(cls, plan: Any) -> Settings:
        """From anything that has the keys as attributes, such as config.plan."""
        return cls(**{f.name: getattr(plan, f.name) for f in fields(cls)})


def contradictions(plan: Any) -> list[str]:
    """What does not go together in a `plan` section, a sentence each; single keys are taken to be sound."""
    found = []
    if plan.lower > plan.upper:
        found.append(f"plan.lower={plan.lower} is more than plan.upper={plan.upper}")
    if plan.unit == "tokens" and not plan.token_budget:
        found.append("plan.unit=tokens needs plan.token_budget, the expected response tokens of one step")
    if plan.marginal != "expected_gain" and plan.value != "paper":
        found.append(f"plan.marginal={plan.marginal} is about the paper's p (1 - p)^2: it needs plan.value=paper")
    if plan.candidates > 1 and plan.mode not in ADMITTING:
        found.append(f"plan.candidates={plan.candidates} needs plan.mode {', '.join(ADMITTING)}, not {plan.mode}")
    if plan.target_groups and plan.mode not in ("online", "dynamic_sampling"):
        found.append(f"plan.target_groups={plan.target_groups} needs plan.mode online or dynamic_sampling")
    if plan.unit == "tokens" and plan.mode == "dynamic_sampling":
        found.append(
            "plan.mode=dynamic_sampling counts rollouts: its cost is not known beforehand; use plan.unit=rollouts"
        )
    return found


def make_beliefs(plan: Any) -> Beliefs:
    """Beliefs as a `plan` section asks for them."""
    return Beliefs(plan.discount, plan.prior_alpha, plan.prior_beta, plan.fit_prior)
