"""The planner: turns beliefs into the rollouts of each prompt of a step, and into weights in the loss.

`begin` opens a step and returns its StepPlan (kray/planner/step_plan.py), the same interface in every mode. It begins a visit
of every prompt in the step (kray/planner/beliefs.py), so it is called once a step. `plan` does all at once, for modes that need
no labels of this step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kray.plan_modes import GROUP_LOWER, GROUP_VALUE, MODES, NEED_LABELS, PlanConfig
from kray.planner import baselines
from kray.planner.adapting import Adaptation
from kray.planner.admitting import Offer, admits_at_once, choose, kinds_and_counts, offer_of
from kray.planner.baseline_value import BaselineValue
from kray.planner.baselines import PlanRequest
from kray.planner.beliefs import Beliefs
from kray.planner.calibration import Calibration
from kray.planner.features import FeaturePrior
from kray.planner.greedy import Greedy, RolloutBudget
from kray.planner.limits import (
    StepRequest,
    feasible_budget,
    first_block,
    least_rollouts,
    leaves_out_prompts,
    rollout_costs,
)
from kray.planner.marginals import make_marginal
from kray.planner.modes import Online, Respend, Rounds, Rule, fill
from kray.planner.openings import budgets_in_tokens, commit, evenly, nothing, waves
from kray.planner.quadrature import CobaValue, GrpoValue
from kray.planner.settings import checked_plan, chosen_plan, make_beliefs
from kray.planner.step_plan import StepPlan, StepStart, ids_of
from kray.planner.values import BetaValue, Value
from kray.records import Allocation

# Modes whose budgets are all known at the beginning.
AT_ONCE: dict[str, Callable[[PlanRequest], np.ndarray]] = {
    "static": baselines.static,
    "uniform": baselines.uniform,
    "weight_only": baselines.uniform,
    "paper": baselines.paper,
    "paper_released": baselines.paper_released,
    "coba": baselines.coba,
}


# Makes the rule of a step from its budget, its value and its plan.
MakeRule = Callable[[RolloutBudget, Value, StepPlan], Rule]


class KnapsackPlanner:
    """Plans steps and updates its beliefs by their labels."""

    def __init__(
        self,
        mode: str = PlanConfig.mode,
        budget: int = PlanConfig.budget,
        lower: int = GROUP_LOWER,
        upper: int = PlanConfig.upper,
        beliefs: Beliefs | None = None,
        candidates: float = 1.0,
        kinds: Mapping[str, str] | None = None,
        **options: Any,
    ):
        """Make a planner.

        Args:
            mode: one of MODES.
            budget: rollouts a step.
            lower: least rollouts of a prompt that is visited.
            upper: most rollouts of a prompt.
            beliefs: about success rates; None: new ones.
            candidates: as plan.candidates, but 1 by default: a caller who names the prompts of a step usually wants all of
                them visited.
            kinds: id -> kind of every prompt, for plan.adapt; None: all are of one kind.
            options: other keys of PlanConfig; `value` is paper by default.

        Raises:
            ValueError: a setting is not allowed; the message names its key as in the configuration (plan.budget, ...).
        """
        plan = PlanConfig(mode, budget, lower, upper, candidates=candidates, **{"value": GROUP_VALUE, **options})
        self.settings = checked_plan(plan)
        self.beliefs = Beliefs() if beliefs is None else beliefs
        self.features = FeaturePrior() if self.settings.prior_features else None
        self.calibration = Calibration()
        self.adaptation = Adaptation(self.settings, kinds) if self.settings.adapt else None
        self._last: StepPlan | None = None
        # state before the last step, to withdraw it
        self._features_before: dict[str, Any] = {}
        self._steps = 0

    @classmethod
    def of(cls, plan: Any, kinds: Mapping[str, str] | None = None) -> KnapsackPlanner:
        """Make the planner that a configuration's `plan` section asks for; `kinds` as in the constructor."""
        return cls(beliefs=make_beliefs(plan), kinds=kinds, **vars(chosen_plan(plan)))

    @property
    def mode(self) -> str:
        """plan.mode, one of MODES."""
        return self.settings.mode

    def begin(
        self,
        prompt_ids: Sequence[str],
        budget: float | None = None,
        *,
        cost: ArrayLike | None = None,
        due: ArrayLike | None = None,
        labels: Sequence[str] | None = None,
        features: ArrayLike | None = None,
    ) -> StepPlan:
        """Begin a visit of M prompts and a plan for them.

        Args:
            prompt_ids: M of them, or an Offer of Candidates that are kept from step to step (kray/planner/admitting.py), which
                has the labels and features.
            budget: of this step, in plan.unit, where it differs from the configured one, as in an epoch's short last step.
            cost: (M,) expected response tokens of one rollout; needed where the budget counts tokens, else ignored.
            due: (M,) bool, candidates that must be visited in this step (plan.candidates > 1).
            labels: M names of the groups whose prior each prompt has (plan.prior_by).
            features: (M, d) for plan.prior_features, else ignored.

        Raises:
            ValueError: the bounds and the budget cannot be met, or an argument is malformed; no belief has changed then.
        """
        plan = self.settings
        ids = offer_of(prompt_ids, labels, features) if admits_at_once(plan) else ids_of(prompt_ids)
        if labels is not None and len(labels) != len(ids):
            raise ValueError(f"labels must be one for each of {len(ids)} prompts; got {len(labels)}")
        prices, least = rollout_costs(plan, len(ids), cost), least_rollouts(plan, len(ids), due)
        upper = np.full(len(ids), plan.upper, dtype=np.int64)
        request = StepRequest(ids, feasible_budget(plan, budget, prices, least), prices, least, upper, labels, features)
        # what is offered is not visited yet where the plan chooses at once
        before = self.beliefs.snapshot(() if isinstance(ids, Offer) else ids)
        learned = self.calibration, self.adaptation
        self._features_before = self.features.snapshot() if self.features is not None else {}
        self.calibration, self.adaptation = self._learned()
        try:
            self._last = self._admit(request, ids, before) if isinstance(ids, Offer) else self._open(request, before)
        except BaseException:
            self.calibration, self.adaptation = learned
            self.beliefs.restore(before)
            self._restore_features()
            raise
        self._steps += 1
        return self._last

    def _open(self, request: StepRequest, before: dict[str, Any]) -> StepPlan:
        """Begin the visit, refit the prior, and make the plan on the beliefs; `before` is the beliefs' snapshot."""
        plan, ids = self.settings, list(request.ids)
        known = self._features(ids, request.features)
        self._refit()
        self.beliefs.begin_visit(ids, request.labels)
        own = self.features.shape(known) if self.features and self.features.active and known is not None else None
        alpha, beta = self.beliefs.posterior(ids, own)
        value = self._value(ids, alpha, beta)
        request, unsolved = self._adapted(request, value)
        held, rule, total = self._opening(request, value)
        budget = self._budget(held, request.cost, total, request.upper)
        if plan.mode in AT_ONCE and plan.unit == "rollouts" and not leaves_out_prompts(plan):
            assert int(held.sum()) == request.budget, (plan.mode, held.sum(), request.budget)
        assert ((held >= request.least) & (held <= plan.upper)).all(), (plan.mode, held.min(), held.max())
        baseline = self._baseline(alpha, beta)
        start = StepStart(ids, plan, self.beliefs, before, alpha, beta, baseline, value, total, unsolved=unsolved)
        return StepPlan(start, budget, partial(rule, budget, value))

    def _admit(self, request: StepRequest, offer: Offer, before: dict[str, Any]) -> StepPlan:
        """Refit the prior, choose among the prompts that are offered, and make the plan of those that are chosen.

        before: the beliefs' snapshot, to which the chosen prompts are added.
        """
        plan, candidates, active = self.settings, offer.candidates, self.features
        self._refit()
        known = candidates.features(offer.at) if active is not None else None
        own = active.shape(known) if active is not None and active.active and known is not None else None
        alpha, beta = candidates.posterior(offer.at, self.beliefs, own)
        value = self._value(offer, alpha, beta)
        assert isinstance(value, BaselineValue)
        request, unsolved = self._adapted(request, value)
        block, cost = first_block(plan), request.cost
        rows, held = choose(plan, value, request.least, block, cost, request.budget, request.upper)
        unsolved = None if unsolved is None else unsolved[rows]
        at = offer.at[rows]
        ids = candidates.ids(at)
        before |= {key: x for key, x in self.beliefs.snapshot(ids).items() if key != "prior"}
        beliefs_rows = candidates.begin_visit(at, self.beliefs)
        if active is not None and known is not None:
            active.remember(beliefs_rows, known[rows])
        value = value.part(rows)
        budget = self._budget(held, cost[rows], request.budget, request.upper[rows])
        alpha, beta = alpha[rows], beta[rows]
        baseline = self._baseline(alpha, beta)
        start = StepStart(ids, plan, self.beliefs, before, alpha, beta, baseline, value, request.budget, rows, unsolved)
        return StepPlan(start, budget, partial(self._respend, budget, value))

    def _adapted(self, request: StepRequest, value: Value) -> tuple[StepRequest, np.ndarray | None]:
        """Return the request within the limits of kinds, and which prompts were tried and never solved (plan.adapt)."""
        if self.adaptation is None:
            return request, None
        return self.adaptation.limited(request, *kinds_and_counts(request.ids, self.adaptation, self.beliefs), value)

    def _baseline(self, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """Return (M, 2) alpha and beta of the beliefs that serve as baseline."""
        corrected = self.calibration.apply(alpha, beta) if self.settings.calibrate else (alpha, beta)
        return np.stack(corrected, axis=1)

    def _refit(self) -> None:
        """Fit the priors where this step is one for it (plan.refit_every)."""
        if self._steps % self.settings.refit_every == 0 or self._steps < self.settings.refit_every:
            self.beliefs.refit_prior()
            if self.features is not None:
                self.features.refit(*self.beliefs.last_labels(self.features.rows()))

    def _budget(self, held: np.ndarray, cost: np.ndarray, total: float, upper: np.ndarray) -> RolloutBudget:
        return RolloutBudget(
            held=held.tolist(),
            cap=np.maximum(held, upper).tolist(),
            cost=cost.tolist(),
            free=total - float(cost @ held),
            block=first_block(self.settings),
            partial_blocks=self.settings.lower <= 1,
            tolerance=1e-9 * (1 + total),
        )

    def least(self, prompts: int, cost: ArrayLike | None = None, due: ArrayLike | None = None) -> float:
        """Return the smallest budget, in plan.unit, with which `begin` can visit so many prompts (cost, due: as there)."""
        return float(rollout_costs(self.settings, prompts, cost) @ least_rollouts(self.settings, prompts, due))

    def plan(self, prompt_ids: Sequence[str], budget: int | None = None, **known: Any) -> Allocation:
        """Plan a step without its labels: begin it and dispatch everything at once. Labels may then go to `observe`.

        Args:
            prompt_ids: as in `begin`.
            budget: as in `begin`.
            known: `cost`, `due` and `labels` of `begin`.

        Raises:
            ValueError: as in `begin`, or the mode plans by the labels of the step.
        """
        if self.mode in NEED_LABELS:
            raise ValueError(f"plan.mode={self.mode} plans by the labels of the step: use `begin`, not `plan`")
        step = self.begin(prompt_ids, budget, **known)
        while step.take(None):
            pass
        return step.allocation()

    def observe(self, prompt_id: str, rewards: ArrayLike) -> None:
        """Add a prompt's labels to the visit that `plan` began; for a StepPlan, call its own `observe` instead.

        Args:
            prompt_id: of any prompt.
            rewards: scalar or (N,) in [0, 1].

        Raises:
            ValueError: a reward is NaN or out of range; then none is added.
        """
        self.beliefs.observe(prompt_id, rewards)

    def withdraw(self) -> None:
        """Undo the last step, with the labels observed for it, as if it had not been planned."""
        if self._last is not None:
            self._last.withdraw()
            self._restore_features()
            self._last = None
            self._steps -= 1

    def _learned(self) -> tuple[Calibration, Adaptation | None]:
        """Return the calibration and the adaptation with the labels of the last step, which `begin` takes over."""
        found, adaptation = copy.deepcopy(self.calibration), self.adaptation
        if self._last is not None:
            self._last.calibrate(found)
            adaptation = adaptation and self._last.adapted(adaptation)
        return found, adaptation

    def _restore_features(self) -> None:
        if self.features is not None:
            self.features.restore(self._features_before)

    def to_dict(self) -> dict[str, Any]:
        """Return what has been learned, for a checkpoint. Mode and bounds are not in it: they come from the configuration.

        All labels of the last step must have come in.
        """
        learned = {"version": 1, "steps": self._steps, "beliefs": self.beliefs.to_dict()}
        calibration, adaptation = self._learned()
        learned["calibration"] = calibration.to_dict()
        if adaptation is not None:
            learned["adaptation"] = adaptation.to_dict()
        return learned | ({} if self.features is None else {"features": self.features.to_dict()})

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `to_dict` returned. The prior of features, which older states lack, is then fitted anew.

        Raises:
            ValueError: the version is unknown, or the state is damaged.
        """
        if state.get("version") != 1:
            raise ValueError(f"a planner of version {state.get('version')!r} cannot be read; this is version 1")
        kept = Beliefs.from_dict(state["beliefs"])
        # the settings are the configuration's
        kept.adopt(self.beliefs)
        self.beliefs = kept
        if self.features is not None:
            self.features = FeaturePrior()
            if state.get("features"):
                self.features.load_dict(state["features"])
        self._steps = int(state.get("steps", 0))
        self.calibration = Calibration()
        if state.get("calibration"):
            self.calibration.load_dict(state["calibration"])
        if self.adaptation is not None:
            self.adaptation.load_dict(state.get("adaptation") or {})
        self._last = None

    def _groups(self, m: int) -> int:
        return self.settings.target_groups or max(1, round(m / self.settings.candidates))

    def _value(self, ids: Sequence[str], alpha: np.ndarray, beta: np.ndarray) -> Value:
        if self.settings.value == "baseline":
            return BaselineValue(alpha, beta, self.settings.gain, self.settings.tau)
        if self.settings.value == "grpo":
            return GrpoValue(alpha, beta)
        if self.settings.value == "coba":
            successes, trials = self.beliefs.last_visit(ids)
            seen = trials > 0
            rates = successes[seen] / trials[seen] if seen.any() else alpha / (alpha + beta)
            return CobaValue(alpha, beta, min(1.0, max(0.0, 1 - float(np.mean(rates)))))
        return BetaValue(alpha, beta)

    def _opening(self, request: StepRequest, value: Value) -> tuple[np.ndarray, MakeRule, float]:
        """Return (held (M,) int64 at the beginning, how to make the rule, the step's whole budget)."""
        plan, budget, cost, least = self.settings, request.budget, request.cost, request.least
        if plan.mode == "dynamic_sampling":
            return self._first_wave(budget, least)
        if plan.mode == "online" or (plan.mode == "static" and leaves_out_prompts(plan)):
            return least, self._online, budget
        if plan.mode in ("rounds", "pilot_commit"):
            top = np.maximum(least, np.minimum(plan.pilot, plan.upper))
            held = least + fill(np.zeros_like(least), top - least, cost, budget - float(cost @ least))
            return held, self._rounds if plan.mode == "rounds" else commit, budget
        make = partial(self._at_once, request, value)
        held = make(int(budget)) if plan.unit == "rollouts" else budgets_in_tokens(plan, make, value, request)
        return held, self._respend if plan.mode == "static" else evenly if plan.unit == "tokens" else nothing, budget

    def _first_wave(self, budget: float, least: np.ndarray) -> tuple[np.ndarray, MakeRule, float]:
        """Do the same for dynamic_sampling, whose first wave has all prompts that are due."""
        plan, m = self.settings, len(least)
        groups = min(self._groups(m), m) if leaves_out_prompts(plan) else m
        size = int(np.clip(budget // max(groups, 1), first_block(plan), plan.upper))
        held = np.zeros(m, dtype=np.int64)
        held[np.argsort(least == 0, kind="stable")[: max(groups, np.count_nonzero(least))]] = size
        return held, partial(waves, groups, size, self._groups(m)), float(size * m)

    def _at_once(self, request: StepRequest, value: Value, rollouts: int) -> np.ndarray:
        plan, ids, bounds = self.settings, list(request.ids), (request.least, request.upper)
        return AT_ONCE[plan.mode](PlanRequest(ids, rollouts, plan.lower, plan.upper, self.beliefs, value, bounds))

    def _greedy(self, budget: RolloutBudget, value: Value, step: StepPlan | None = None) -> Greedy:
        plan = self.settings
        held = np.array(budget.held, dtype=np.int64)
        opening = None
        if not held.all():
            block = np.full(len(value), budget.block, dtype=np.int64)
            opening = value.total(block) / max(budget.block, 1)
        greedy = Greedy(make_marginal(plan.marginal, value, held, plan.target_size), budget, opening)
        # for a rule made in the middle of a step
        if step is not None:
            for row, (passed, failed) in enumerate(step.labels()):
                if passed or failed:
                    greedy.marginal.observe(row, passed, failed)
                    greedy.mark_changed(row)
        return greedy

    def _online(self, budget: RolloutBudget, value: Value, step: StepPlan) -> Rule:
        return Online(self._greedy(budget, value), step, self.settings.target_groups)

    def _rounds(self, budget: RolloutBudget, value: Value, step: StepPlan) -> Rule:
        return Rounds(self._greedy(budget, value), step, self.settings.rounds)

    def _respend(self, budget: RolloutBudget, value: Value, step: StepPlan) -> Rule:
        return Respend(lambda: self._greedy(budget, value, step))

    def _features(self, ids: list[str], features: ArrayLike | None) -> np.ndarray | None:
        if self.features is None or features is None:
            return None
        return self.features.remember(self.beliefs.rows(ids), features)


__all__ = ["MODES", "KnapsackPlanner"]
