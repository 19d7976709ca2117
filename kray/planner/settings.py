"""How steps are planned: one frozen record of the configuration's `plan` section, checked. Messages name its keys."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from kray.plan_modes import MARGINALS, MODES, UNITS, VALUES, WEIGHTS, contradictions
from kray.planner.beliefs import Beliefs


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
    prior_features: bool = False

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
        for _, message in contradictions(self):
            raise ValueError(message)

    @classmethod
    def of(cls, plan: Any) -> Settings:
        """From anything that has the keys as attributes, such as config.plan."""
        return cls(**{f.name: getattr(plan, f.name) for f in fields(cls)})


def make_beliefs(plan: Any) -> Beliefs:
    """Beliefs as a `plan` section asks for them."""
    return Beliefs(plan.discount, plan.prior_alpha, plan.prior_beta, plan.fit_prior, plan.fit_discount)
