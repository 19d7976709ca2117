"""The configuration's `plan` section: its keys with their defaults, the values they may take, and what goes together.

Shared by the configuration, the planner and the planner service, so that a default stands once. Imports neither numpy nor
OmegaConf, because the configuration loads no numpy and the planner no OmegaConf.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
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
# Modes whose plan depends on the labels of the step itself.
NEED_LABELS = ("rounds", "dynamic_sampling", "pilot_commit")
# Modes that give the budget of a lost rollout to another prompt.
RESPEND = ("static", "online", "rounds")
# Modes that may leave an offered prompt without rollouts.
ADMITTING = ("static", "online", "dynamic_sampling")
VALUES = ("paper", "grpo", "coba", "baseline")
# Modes of kray itself, whose plans go with the belief as baseline of the advantage.
OWN = ("static", "online", "rounds")
# Value and least rollouts of a prompt where the mean of the group is the baseline.
GROUP_VALUE, GROUP_LOWER = "paper", 2
GAINS = ("paper", "sqrt", "flat")
MARGINALS = ("expected_gain", "stop_at_mixed", "hybrid", "target_size")
WEIGHTS = ("rollouts", "uniform", "knapsack", "hindsight")
UNITS = ("rollouts", "tokens")


@dataclass
class PlanConfig:
    """How the budget of a step is spent."""

    mode: str = "static"
    """How budgets are set. Knapsack: static (all at once), online (as labels come back) or rounds (a pilot, then rounds).
    Rivals for comparison: uniform (GRPO), paper, paper_released, coba, pilot_commit, dynamic_sampling. weight_only: uniform
    budgets, with the knapsack's weights in the loss."""

    budget: int = 512
    """Rollouts of one step, over all its prompts."""

    lower: int = 0
    """Least rollouts of every prompt that is visited. 0: 2 where `train.baseline` is group, else 1."""

    upper: int = 128
    """Most rollouts of one prompt in a step."""

    unit: str = "rollouts"
    """What the budget counts: rollouts or tokens."""

    token_budget: int = 0
    """Expected response tokens of one step, where `unit` is tokens. It is raised where `lower` needs more."""

    value: str = "auto"
    """What n rollouts at success rate p are worth: paper (p (1 - p)^2 if the group is mixed, arXiv 2509.25849), grpo, coba, or
    baseline, for `train.baseline: belief`: `gain` times m / (m + `tau`), where m counts the rollouts as the belief's strength
    lets them teach. One rollout alone then has a value. auto: baseline in the modes static, online and rounds unless
    `train.baseline` is group, else paper."""

    gain: str = "paper"
    """What a prompt with success rate p is worth where `value` is baseline: paper (p (1 - p)^2), sqrt (sqrt(p) (1 - p)) or flat
    (the same for every p)."""

    tau: float = 1.0
    """Effective rollouts of a prompt that give half of its `gain`, where `value` is baseline: the variance of one rollout's
    gradient over the squared norm of the prompt's mean gradient. Larger: more rollouts of fewer prompts."""

    marginal: str = "expected_gain"
    """What the next rollout is worth in the modes online and rounds: expected_gain, stop_at_mixed, hybrid or target_size."""

    target_size: int = 8
    """Rollouts up to which `marginal: target_size` fills a group."""

    in_flight: int = 0
    """Most rollouts that are generated at a time. 0: a quarter of the budget in mode online, no limit in other modes."""

    pilot: int = 4
    """Rollouts of each prompt before the first labels count, in the modes rounds and pilot_commit."""

    rounds: int = 2
    """Rounds after the pilot, in mode rounds."""

    weights: str = "rollouts"
    """Weight of a prompt in the loss: rollouts (its number of rollouts), uniform, knapsack (the budget that static would
    have given) or hindsight (the budget that static would have given had it known the labels of the step)."""

    candidates: float = -1.0
    """Prompts offered to the planner, as a multiple of `prompts.per_step`; 0: all training prompts, in the modes static and
    online. -1: as many as a step has rollouts where `value` is baseline, so that one rollout each is possible; else 2. Above
    1, and with 0, the planner leaves some of them for a later step; only in the modes static, online and dynamic_sampling (the
    others visit all prompts they are offered, and are offered `prompts.per_step`)."""

    target_groups: int = 0
    """Mixed groups at which a step ends early, in the modes online and dynamic_sampling. 0: the whole budget is spent."""

    max_wait: int = 8
    """Steps for which an offered prompt may be passed over before it must be visited. With `candidates` 0 at most half of
    `prompts.per_step` must be visited in a step, those first that have waited longest."""

    adapt: bool = False
    """Tighten, by kind and step, the limits of kinds of prompts (source and `kind_field`) whose latest rollouts had little to
    teach: `lower`, `upper`, the share of their candidates that is offered, and the share of their never-solved prompts that is
    tried (docs/planner.md). Only in mode static, with `train.baseline` belief or group."""

    discount: float = 0.5
    """Factor on a prompt's old labels at each visit, because the policy has changed since. The start value if
    `fit_discount` is on."""

    fit_discount: bool = True
    """Fit the discounts of successes and of failures to how well earlier visits predicted later ones."""

    calibrate: bool = True
    """Correct the beliefs that serve as baseline (`train.baseline: belief`) by how well those of the latest steps predicted
    rewards: beliefs that predict nothing fall back to the mean of all prompts. Budgets are planned by uncorrected beliefs."""

    prior_alpha: float = 1.0
    """Alpha of the Beta prior of the success rate, until the prior has been fitted."""

    prior_beta: float = 1.0
    """Beta of the same prior."""

    fit_prior: bool = True
    """Fit the prior to the labels of all prompts as they arrive (empirical Bayes)."""

    prior_by: str = "all"
    """Which prompts share a prior: all, those of one source, or those of one kind (source and `kind_field`)."""

    prior_features: bool = False
    """Fit a prior from features of the prompts as well. It is used only while it predicts held-out labels better."""

    refit_every: int = 1
    """Steps between two fits of the prior (one fit takes 0.1 s for a million prompts)."""


def for_belief(plan: PlanConfig) -> bool:
    """Return whether the belief is the baseline unless told otherwise: in kray's own modes, if nothing asks for groups."""
    groups = plan.marginal != "expected_gain" or plan.target_groups or plan.value not in ("auto", "baseline")
    return plan.mode in OWN and not groups


def settle(plan: PlanConfig, baseline: str = "group", per_step: int = 0) -> None:
    """Set the keys of a `plan` section that are to be chosen, in place.

    Args:
        plan: the section.
        baseline: train.baseline; group where the planner serves a trainer that does not know kray's beliefs.
        per_step: prompts.per_step; 0 where prompts are offered by someone else.
    """
    if plan.value == "auto":
        plan.value = "baseline" if baseline != "group" and for_belief(plan) else GROUP_VALUE
    if plan.lower == 0:
        plan.lower = GROUP_LOWER if baseline == "group" and plan.value != "baseline" else 1
    if plan.candidates == -1:
        each = plan.budget / per_step if per_step and plan.value == "baseline" and plan.unit == "rollouts" else 2.0
        plan.candidates = max(2.0, each)


def offered_share(plan: PlanConfig) -> float:
    """Return the number of prompts offered to the planner in a step, as a multiple of prompts.per_step.

    It is 1 where the mode visits every prompt that it is offered, and infinite where all training prompts are offered.
    """
    if plan.mode not in ADMITTING:
        return 1.0
    return float(plan.candidates) or inf


def offered_prompts(plan: PlanConfig, per_step: int, prompts: int) -> int:
    """Return how many of so many training prompts are offered to the planner in a step."""
    share = offered_share(plan)
    return prompts if share == inf else min(prompts, round(share * per_step))


def due_of_all(per_step: int) -> int:
    """Return how many prompts are due in a step at most where all training prompts are offered: half of a step's.

    So the planner always chooses the other half itself, however many prompts there are.
    """
    return max(1, per_step // 2)


def smallest_group(plan: Any) -> int:
    """Return the rollouts of a prompt that teach something together: 2, but 1 where the belief is the baseline."""
    return 1 if plan.value == "baseline" else 2


def due_must_fit(plan: Any) -> bool:
    """Return whether the budget of a step must pay for all its candidates at once, since all of them may fall due together.

    Where it need not, the prompts that have waited longest are visited first.
    """
    return plan.mode != "dynamic_sampling" and plan.value != "baseline"


def contradictions(plan: Any) -> list[tuple[tuple[str, ...], str]]:
    """List what does not go together in a `plan` section whose single keys are valid.

    Args:
        plan: anything with the keys of PlanConfig as attributes.

    Returns:
        (keys, message) pairs.
    """
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
    if plan.candidates == 0 and plan.mode == "dynamic_sampling":
        text = "plan.candidates 0 offers all training prompts: plan.mode dynamic_sampling needs a multiple of prompts.per_step"
        found.append((("candidates", "mode"), text))
    if plan.adapt and plan.mode != "static":
        found.append((("adapt", "mode"), f"plan.adapt sets the limits of plan.mode static, not those of {plan.mode}"))
    if plan.target_groups and plan.mode not in ("online", "dynamic_sampling"):
        text = f"plan.target_groups {plan.target_groups} needs plan.mode online or dynamic_sampling, not {plan.mode}"
        found.append((("target_groups", "mode"), text))
    return found
