"""Planner and collector of a method with controls (kray/compare/controls.py): known success rates, random choice, noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kray.compare.controls import CERTAIN, LEAST, Controls
from kray.config import KrayConfig
from kray.planner import KnapsackPlanner, PointValue
from kray.planner.baseline_value import BaselineValue
from kray.planner.greedy import RolloutBudget
from kray.planner.limits import leaves_out_prompts
from kray.planner.modes import Even, Rule
from kray.planner.step_plan import StepPlan
from kray.planner.values import Value
from kray.records import EncodedPrompt, Prompt, Rollout, derive_seed
from kray.rollout.collected import CollectedStep
from kray.rollout.collector import TRAINING, Collector, Draw
from kray.rollout.conversation import TurnResult
from kray.rollout.plans import Plan


class ControlledPlanner(KnapsackPlanner):
    """The static knapsack on known success rates, or with its budgets given to random prompts, or both.

    Known rates enter the value alone: beliefs, discounts and priors go on as without them.

    Attributes:
        controls: Of the method.
        run_seed: Of the run.
        rates: Prompt id -> exact success rate, set before each step where the plan knows them.
    """

    controls: Controls
    run_seed: int
    rates: dict[str, float]

    @classmethod
    def under(cls, controls: Controls, config: KrayConfig) -> ControlledPlanner:
        """Make the planner of a configuration under these controls."""
        planner = cls.of(config.plan)
        assert isinstance(planner, ControlledPlanner)
        planner.controls, planner.run_seed, planner.rates = controls, config.run.seed, {}
        return planner

    @property
    def _certain(self) -> bool:
        """Whether rates are taken as points, which has no gains for prompts that may be passed over."""
        plan = self.settings
        return self.controls.knows_plan and plan.value == "paper" and not leaves_out_prompts(plan)

    def begin(
        self, prompt_ids: Sequence[str], budget: float | None = None, *, due: ArrayLike | None = None, **known: Any
    ) -> StepPlan:
        """Begin a step as KnapsackPlanner does."""
        fixed = np.zeros(len(prompt_ids), dtype=bool) if due is None else np.asarray(due, dtype=bool)
        self._order = np.arange(len(prompt_ids))
        if self.controls.shuffle_budgets:
            free = np.flatnonzero(~fixed)
            draw = np.random.default_rng(derive_seed(self.run_seed, self._steps, "shuffled budgets"))
            self._order[free] = draw.permutation(free)
        return super().begin(prompt_ids, budget, due=due, **known)

    def _value(self, ids: Sequence[str], alpha: np.ndarray, beta: np.ndarray) -> Value:
        """Return the value by which the step is planned.

        The budget of a prompt depends on its own value and on the set of all values. So where each prompt that is not due
        has the value of another one, at random, it gets the budget of that one: the histogram of budgets stays the same.
        """
        order = self._order
        if self.controls.knows_plan:
            p = np.array([self.rates[i] for i in ids])
            if self._certain:
                return PointValue(p[order])
            strength = (alpha + beta)[order]
            alpha, beta = known_beliefs(p).T
            if self.settings.value == "baseline" and not self.controls.knows_baseline:
                # how many rollouts a group needs depends on its baseline, which is the belief as it is
                return BaselineValue(alpha[order], beta[order], self.settings.gain, self.settings.tau, strength)
        return super()._value(ids, alpha[order], beta[order])

    def _respend(self, budget: RolloutBudget, value: Value, step: StepPlan) -> Rule:
        """Leave lost rollouts lost where rates are points: giving them to others would need a marginal that knows rates.

        In budgets of tokens what comes back then goes evenly to all prompts.
        """
        if not self._certain:
            return super()._respend(budget, value, step)
        return Even(budget) if self.settings.unit == "tokens" else Rule()


class NoisyCollector(Collector):
    """Flips rewards of training at random, before the plan and the groups get them; evaluations see the true ones."""

    def __init__(self, plain: Collector, noise: float):
        """Take the place of a collector.

        Args:
            plain: What this one replaces; evaluates.
            noise: Probability with which a reward is flipped.
        """
        super().__init__(plain.pool, plain.scorer, plain.tokenizer, plain.rollout, plain.host)
        self.lengths, self._plain, self._noise = plain.lengths, plain, noise
        self._draw: Draw | None = None

    async def collect(
        self, plan: Plan, prompts: Sequence[EncodedPrompt], draw: Draw, priority: int = TRAINING
    ) -> CollectedStep:
        """Carry out a plan over these prompts, as Collector does."""
        if priority != TRAINING:
            return await self._plain.collect(plan, prompts, draw, priority)
        # Steps are collected one after the other.
        self._draw = draw
        return await super().collect(plan, prompts, draw, priority)

    async def _score(self, prompt: Prompt, ended: Sequence[tuple[Rollout, str]]) -> TurnResult:
        result = await super()._score(prompt, ended)
        assert self._draw is not None
        seed = self._draw.seeds(prompt.id)
        for rollout in result.scored:
            if flips(seed, rollout.index, self._noise):
                rollout.reward = 1.0 - (rollout.reward or 0.0)
        return result


def flips(seed: int, index: int, noise: float) -> bool:
    """Return whether a reward is flipped.

    Args:
        seed: Of the rollout's group, which derives from (run seed, step, prompt id).
        index: Of the rollout in the group.
        noise: Probability of a flip.
    """
    return derive_seed(seed, index, "label noise") < noise * 2**62


def known_beliefs(rates: np.ndarray) -> np.ndarray:
    """Return (M, 2) alpha and beta of beliefs that are as good as certain of the success rates (M,)."""
    return np.maximum(CERTAIN * np.stack([rates, 1 - rates], axis=1), LEAST)
