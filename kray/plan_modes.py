"""What may stand in a configuration's `plan` section and what goes together: shared by the checks and the planner.

Imports nothing, because the checks load no numpy and the planner no OmegaConf.
"""

from __future__ import annotations

from typing import Any

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
MARGINALS = ("expected_gain", "stop_at_mixed", "hybrid", "target_size")
WEIGHTS = ("rollouts", "uniform", "knapsack", "hindsight")
UNITS = ("rollouts", "tokens")


def offered_share(plan: Any) -> float:
    """Prompts offered to the planner in a step / prompts.per_step: 1 where the mode visits whatever it is offered."""
    return float(plan.candidates) if plan.mode in ADMITTING else 1.0


def contradictions(plan: Any) -> list[tuple[tuple[str, ...], str]]:
    """What does not go together in a `plan` section: its keys and a sentence each; single keys are taken to be sound."""
    found: list[tuple[tuple[str, ...], str]] = []
    if plan.lower > plan.upper:
        found.append((("lower", "upper"), f"plan.lower {plan.lower} is above plan.upper {plan.upper}"))
    if plan.unit == "tokens" and not plan.token_budget:
        text = "plan.unit tokens needs plan.token_budget, the expected response tokens of one step"
        found.append((("unit", "token_budget"), text))
    if plan.unit == "tokens" and plan.mode == "dynamic_sampling":
        text = "plan.mode dynamic_sampling counts rollouts, since its cost is not known beforehand: plan.unit must be rollouts"
        found.append((("unit", "mode"), text))
    if plan.marginal != "expected_gain" and plan.value != "paper":
        text = f"plan.marginal {plan.marginal} is about the paper's p (1 - p)^2: it needs plan.value paper, not {plan.value}"
        found.append((("marginal", "value"), text))
    if plan.target_groups and plan.mode not in ("online", "dynamic_sampling"):
        text = f"plan.target_groups {plan.target_groups} needs plan.mode online or dynamic_sampling, not {plan.mode}"
        found.append((("target_groups", "mode"), text))
    return found
