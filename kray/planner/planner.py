"""From beliefs to a plan: how many rollouts each prompt of a step gets, and with which weight in the loss.

Promises, asserted: the budgets of a plan sum to the step's budget, and each lies in [lower, upper].
`plan` begins a visit of every prompt in it (beliefs.py), so it is called once a step, before that step's labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kray.planner.baselines import PlanRequest, paper, uniform
from kray.planner.beliefs import Beliefs
from kray.planner.solver import solve
from kray.planner.values import BetaValue
from kray.records import Allocation


def static(request: PlanRequest) -> np.ndarray:
    """The knapsack of arXiv 2509.25849 on the expected value under each prompt's posterior, (M,) int64.

    Needs no fallback and no warm-up: unseen prompts have the prior, unsolved ones keep a share that shrinks with the
    evidence.
    """
    return solve(request.value, request.budget, request.lower, request.upper)


MODES: dict[str, Callable[[PlanRequest], np.ndarray]] = {"static": static, "uniform": uniform, "paper": paper}


class KnapsackPlanner:
    """Plans steps and learns from their labels.

    mode: a key of MODES. budget: rollouts a step; lower, upper: rollouts per prompt. Messages name the configuration's
    keys (plan.mode, plan.budget, ...); all errors are ValueError.
    """

    def __init__(
        self, mode: str = "static", budget: int = 512, lower: int = 2, upper: int = 128, beliefs: Beliefs | None = None
    ):
        if mode not in MODES:
            raise ValueError(f"plan.mode={mode} is not one of {', '.join(MODES)}")
        for name, x in (("budget", budget), ("lower", lower), ("upper", upper)):
            if x != int(x) or x < 0:
                raise ValueError(f"plan.{name}={x} must be a whole number of rollouts >= 0")
        if lower > upper:
            raise ValueError(f"plan.lower={lower} is more than plan.upper={upper}")
        self.mode, self.budget, self.lower, self.upper = mode, int(budget), int(lower), int(upper)
        self.beliefs = Beliefs() if beliefs is None else beliefs
        self._before: dict[str, Any] | None = None  # the beliefs that the last plan was made from

    def plan(self, prompt_ids: Sequence[str], budget: int | None = None) -> Allocation:
        """Begins a visit of M prompts and plans it.

        budget: rollouts of this step where it differs from the usual, as in an epoch's short last step.
        expected_success is the posterior mean and expected_value the expected value at the posterior (values.py), in
        every mode, so that plans of different modes compare. Weights are the budgets. Raises ValueError, before any
        belief has changed, when the bounds and the budget cannot be met or an id is given twice.
        """
        ids = list(prompt_ids)
        budget = self._feasible(len(ids), self.budget if budget is None else budget)
        before = self.beliefs.snapshot(ids)
        self.beliefs.begin_visit(ids)
        self._before = before
        self.beliefs.refit_prior()
        alpha, beta = self.beliefs.posterior(ids)
        value = BetaValue(alpha, beta)
        budgets = MODES[self.mode](PlanRequest(ids, budget, self.lower, self.upper, self.beliefs, value))
        assert int(budgets.sum()) == budget, (self.mode, budgets.sum(), budget)
        assert ((budgets >= self.lower) & (budgets <= self.upper)).all(), (self.mode, budgets.min(), budgets.max())
        return Allocation(
            prompt_ids=ids,
            budgets=budgets,
            weights=budgets.astype(np.float64),
            expected_success=alpha / (alpha + beta),
            expected_value=value.total(budgets),
        )

    def observe(self, prompt_id: str, rewards: ArrayLike) -> None:
        """Adds a prompt's labels, scalar or (N,) in [0, 1], to the visit that `plan` began; ValueError otherwise."""
        self.beliefs.observe(prompt_id, rewards)

    def withdraw(self) -> None:
        """Takes the last plan back, with the labels observed for it: as if that step had never been planned."""
        if self._before is not None:
            self.beliefs.restore(self._before)
            self._before = None

    def to_dict(self) -> dict[str, Any]:
        """What has been learned, for a checkpoint. Mode and bounds are not in it: they come from the configuration."""
        return {"version": 1, "beliefs": self.beliefs.to_dict()}

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `to_dict` wrote; ValueError on another version."""
        if state.get("version") != 1:
            raise ValueError(f"a planner of version {state.get('version')!r} cannot be read; this is version 1")
        self.beliefs = Beliefs.from_dict(state["beliefs"])

    def _feasible(self, m: int, budget: int) -> int:
        if budget != int(budget) or budget < 0:
            raise ValueError(f"plan.budget={budget} must be a whole number of rollouts >= 0")
        if budget < self.lower * m:
            raise ValueError(
                f"plan.budget={budget} is less than plan.lower={self.lower} for each of {m} prompts; "
                f"raise plan.budget to {self.lower * m} or lower plan.lower"
            )
        if budget > self.upper * m:
            raise ValueError(
                f"plan.budget={budget} is more than plan.upper={self.upper} for each of {m} prompts; "
                f"lower plan.budget to {self.upper * m} or raise plan.upper (or plan.lower and prompts.per_step)"
            )
        return int(budget)
