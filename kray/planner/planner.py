"""From beliefs to a plan: how many rollouts each prompt of a step gets, and with which weight in the loss.

`begin` opens a step and returns its StepPlan (step.py), the same interface in every mode; it begins a visit of every prompt
in it (beliefs.py), so it is called once a step. `plan` is the short way for modes that need no labels of this step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kray.plan_modes import MODES, NEED_LABELS, PlanConfig, offered_share
from kray.planner import baselines
from kray.planner.baselines import PlanRequest
from kray.planner.beliefs import Beliefs
from kray.planner.features import FeaturePrior
from kray.planner.greedy import Greedy, RolloutBudget
from kray.planner.marginals import make_marginal
from kray.planner.modes import Commit, Even, Online, Respend, Rounds, Rule, Waves, fill
from kray.planner.quadrature import CobaValue, GrpoValue
from kray.planner.settings import checked_plan, make_beliefs
from kray.planner.solver import solve
from kray.planner.step_plan import Start, StepPlan, ids_of
from kray.planner.values import BetaValue, Value
from kray.records import Allocation

AT_ONCE: dict[str, Callable[[PlanRequest], np.ndarray]] = {  # modes whose budgets are all known at the beginning
    "static": baselines.static,
    "uniform": baselines.uniform,
    "weight_only": baselines.uniform,
    "paper": baselines.paper,
    "paper_released": baselines.paper_released,
    "coba": baselines.coba,
}


class KnapsackPlanner:
    """Plans steps and learns from their labels."""

    def __init__(
        self,
        mode: str = PlanConfig.mode,
        budget: int = PlanConfig.budget,
        lower: int = PlanConfig.lower,
        upper: int = PlanConfig.upper,
        beliefs: Beliefs | None = None,
        candidates: float = 1.0,
        **options: Any,
    ):
        """Make a planner.

        Args:
            mode: one of MODES.
            budget: rollouts a step.
            lower: least rollouts of a prompt that is visited.
            upper: most rollouts of a prompt.
            beliefs: about success rates; None for new ones.
            candidates: as plan.candidates, but 1 by default: a caller who names the prompts of a step usually wants all of
                them visited.
            options: other keys of PlanConfig.

        Raises:
            ValueError: a setting is not allowed; the message names its key as in the configuration (plan.budget, ...).
        """
        plan = PlanConfig(mode, budget, lower, upper, candidates=candidates, **options)
        self.settings = checked_plan(plan)
        self.beliefs = Beliefs() if beliefs is None else beliefs
        self.features = FeaturePrior() if self.settings.prior_features else None
        self._last: StepPlan | None = None
        self._features_before: dict[str, Any] = {}  # the last step, to withdraw it
        self._steps = 0

    @classmethod
    def of(cls, plan: Any) -> KnapsackPlanner:
        """Make the planner that a configuration's `plan` section asks for."""
        return cls(beliefs=make_beliefs(plan), **vars(checked_plan(plan)))

    @property
    def mode(self) -> str:
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
        """Begins a visit of M prompts and a plan for them.

        budget: of this step where it differs from the usual, as in an epoch's short last step; in plan.unit.
        cost (M,): expected response tokens of one rollout of each prompt; needed where the budget counts tokens, else
        ignored. due (M,) bool: candidates that must be visited in this step (plan.candidates > 1). labels (M,): whose
        prior each prompt has (plan.prior_by). features (M, d): for plan.prior_features, else ignored. Raises ValueError,
        before any belief has changed, when the bounds and the budget cannot be met or an id is given twice.
        """
        ids, plan = ids_of(prompt_ids), self.settings
        if labels is not None and len(labels) != len(ids):
            raise ValueError(f"labels must be one for each of {len(ids)} prompts; got {len(labels)}")
        prices = self._prices(len(ids), cost)
        floor = self._floors(len(ids), due)
        amount = self._feasible(plan.token_budget if plan.unit == "tokens" else plan.budget, budget, prices, floor)
        before = self.beliefs.snapshot(ids)
        self._features_before = self.features.snapshot() if self.features is not None else {}
        try:
            self._last = self._open(ids, before, amount, prices, floor, labels, features)
        except BaseException:
            self.beliefs.restore(before)
            self._restore_features()
            raise
        self._steps += 1
        return self._last

    def _open(
        self,
        ids: list[str],
        before: dict[str, Any],
        amount: float,
        prices: np.ndarray,
        floor: np.ndarray,
        labels: Sequence[str] | None,
        features: ArrayLike | None,
    ) -> StepPlan:
        """`begin` once all is checked: the visit, the prior, the beliefs, and the step on them."""
        plan = self.settings
        known = self._features(ids, features)
        if self._steps % plan.refit_every == 0 or self._steps < plan.refit_every:
            self.beliefs.refit_prior()
            if self.features is not None:
                self.features.refit(*self.beliefs.last_labels(self.features.rows()))
        self.beliefs.begin_visit(ids, labels)
        own = self.features.shape(known) if self.features and self.features.active and known is not None else None
        alpha, beta = self.beliefs.posterior(ids, own)
        value = self._value(ids, alpha, beta)
        held, rule, whole = self._opening(ids, value, amount, prices, floor)
        purse = RolloutBudget(
            held=held.tolist(),
            cap=np.maximum(held, plan.upper).tolist(),
            cost=prices.tolist(),
            free=whole - float(prices @ held),
            block=self._block,
            fragile=plan.lower <= 1,
            tolerance=1e-9 * (1 + whole),
        )
        if plan.mode in AT_ONCE and plan.unit == "rollouts" and self._admits is False:
            assert int(held.sum()) == amount, (plan.mode, held.sum(), amount)
        assert ((held >= floor) & (held <= plan.upper)).all(), (plan.mode, held.min(), held.max())
        binary = plan.mode in ("online", "rounds") and plan.marginal != "expected_gain"
        start = Start(ids, plan, self.beliefs, before, alpha, beta, value, whole, binary, plan.target_groups)
        return StepPlan(start, purse, partial(rule, purse, value))

    def least(self, prompts: int, cost: ArrayLike | None = None, due: ArrayLike | None = None) -> float:
        """The smallest budget with which `begin` can visit so many prompts, in plan.unit; cost, due: as there."""
        return float(self._prices(prompts, cost) @ self._floors(prompts, due))

    def plan(self, prompt_ids: Sequence[str], budget: int | None = None, **known: Any) -> Allocation:
        """`begin`, with everything dispatched at once and nothing asked of it: the plan without this step's labels.

        known: cost, due and labels of `begin`. ValueError for modes whose plan is made of labels. Labels may then go to
        `observe`.
        """
        if self.mode in NEED_LABELS:
            raise ValueError(f"plan.mode={self.mode} plans by the labels of the step: use `begin`, not `plan`")
        step = self.begin(prompt_ids, budget, **known)
        while step.take(None):
            pass
        return step.allocation()

    def observe(self, prompt_id: str, rewards: ArrayLike) -> None:
        """Adds a prompt's labels, scalar or (N,) in [0, 1], to the visit that `plan` began; ValueError otherwise.

        Not for steps whose StepPlan gets the labels: its `observe` hands them on.
        """
        self.beliefs.observe(prompt_id, rewards)

    def withdraw(self) -> None:
        """Takes the last step back, with the labels observed for it: as if it had never been planned."""
        if self._last is not None:
            self._last.withdraw()
            self._restore_features()
            self._last = None
            self._steps -= 1

    def _restore_features(self) -> None:
        if self.features is not None:
            self.features.restore(self._features_before)

    def to_dict(self) -> dict[str, Any]:
        """What has been learned, for a checkpoint. Mode and bounds are not in it: they come from the configuration."""
        learned = {"version": 1, "steps": self._steps, "beliefs": self.beliefs.to_dict()}
        return learned | ({} if self.features is None else {"features": self.features.to_dict()})

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `to_dict` wrote; ValueError on another version. Older states hold no prior of features, which then
        proves itself again as prompts come by."""
        if state.get("version") != 1:
            raise ValueError(f"a planner of version {state.get('version')!r} cannot be read; this is version 1")
        kept = Beliefs.from_dict(state["beliefs"])
        kept.adopt(self.beliefs)  # what the configuration says
        self.beliefs = kept
        if self.features is not None:
            self.features = FeaturePrior()
            if state.get("features"):
                self.features.load_dict(state["features"])
        self._steps = int(state.get("steps", 0))
        self._last = None

    # -- how a step opens ----------------------------------------------------------------------------------------------

    @property
    def _admits(self) -> bool:
        """Whether a prompt may stay without rollouts."""
        return offered_share(self.settings) > 1

    @property
    def _block(self) -> int:
        """Rollouts that open a prompt: one alone teaches nothing."""
        return min(max(self.settings.lower, 2), self.settings.upper)

    def _groups(self, m: int) -> int:
        return self.settings.target_groups or max(1, round(m / self.settings.candidates))

    def _value(self, ids: list[str], alpha: np.ndarray, beta: np.ndarray) -> Value:
        if self.settings.value == "grpo":
            return GrpoValue(alpha, beta)
        if self.settings.value == "coba":
            successes, trials = self.beliefs.last_visit(ids)
            seen = trials > 0
            rate = (
                float(np.mean(successes[seen] / trials[seen])) if seen.any() else float((alpha / (alpha + beta)).mean())
            )
            return CobaValue(alpha, beta, min(1.0, max(0.0, 1 - rate)))
        return BetaValue(alpha, beta)

    def _opening(
        self, ids: list[str], value: Value, budget: float, cost: np.ndarray, floor: np.ndarray
    ) -> tuple[np.ndarray, Callable[[RolloutBudget, Value, StepPlan], Rule], float]:
        """(held (M,) at the beginning, how to make the rule, the whole budget)."""
        plan, m = self.settings, len(ids)
        if plan.mode == "dynamic_sampling":
            groups = min(self._groups(m), m) if self._admits else m
            size = int(np.clip(budget // max(groups, 1), self._block, plan.upper))
            first = np.argsort(floor == 0, kind="stable")[
                : max(groups, np.count_nonzero(floor))
            ]  # those that are due first
            held = np.zeros(m)
            held[first] = size
            rule = partial(_waves, groups, size, self._groups(m))
            return held.astype(np.int64), rule, float(size * m)
        if plan.mode == "online" or (plan.mode == "static" and self._admits):
            return floor, self._online, budget
        if plan.mode in ("rounds", "pilot_commit"):
            top = np.maximum(floor, np.minimum(plan.pilot, plan.upper))
            held = floor + fill(np.zeros_like(floor), top - floor, cost, budget - float(cost @ floor))
            return held, self._rounds if plan.mode == "rounds" else _commit, budget
        make = partial(self._at_once, ids, value)
        held = make(int(budget)) if plan.unit == "rollouts" else self._in_tokens(make, value, budget, cost)
        return held, self._respend if plan.mode == "static" else _evenly if plan.unit == "tokens" else _nothing, budget

    def _at_once(self, ids: list[str], value: Value, rollouts: int) -> np.ndarray:
        plan = self.settings
        return AT_ONCE[plan.mode](PlanRequest(ids, rollouts, plan.lower, plan.upper, self.beliefs, value))

    def _in_tokens(
        self, make: Callable[[int], np.ndarray], value: Value, budget: float, cost: np.ndarray
    ) -> np.ndarray:
        """Budgets of a one-shot mode whose expected tokens come to at most `budget`; no other rollout fits in what is left."""
        plan, m = self.settings, len(cost)
        if plan.mode == "static":
            held = solve(value, budget, plan.lower, plan.upper, cost)
        else:  # the mode's own plan for as many rollouts as the tokens pay for
            low, high = plan.lower * m, plan.upper * m
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if cost @ make(middle) <= budget else (low, middle - 1)
            held = make(low)
        return fill(held, np.full(m, plan.upper), cost, budget - float(cost @ held))

    def _greedy(self, purse: RolloutBudget, value: Value, step: StepPlan | None = None) -> Greedy:
        plan = self.settings
        held = np.array(purse.held, dtype=np.int64)
        opening = None
        if not held.all():
            block = np.full(len(value), purse.block, dtype=np.int64)
            opening = value.total(block) / max(purse.block, 1)
        greedy = Greedy(make_marginal(plan.marginal, value, held, plan.target_size), purse, opening)
        if step is not None:  # made in the middle of a step
            for row, (passed, failed) in enumerate(step.labels()):
                if passed or failed:
                    greedy.marginal.label(row, passed, failed)
                    greedy.touched(row)
        return greedy

    def _online(self, purse: RolloutBudget, value: Value, step: StepPlan) -> Rule:
        return Online(self._greedy(purse, value), step, self.settings.target_groups)

    def _rounds(self, purse: RolloutBudget, value: Value, step: StepPlan) -> Rule:
        return Rounds(self._greedy(purse, value), step, self.settings.rounds)

    def _respend(self, purse: RolloutBudget, value: Value, step: StepPlan) -> Rule:
        return Respend(lambda: self._greedy(purse, value, step))

    def _features(self, ids: list[str], features: ArrayLike | None) -> np.ndarray | None:
        if self.features is None or features is None:
            return None
        return self.features.remember(self.beliefs.rows(ids), features)

    # -- what is refused -----------------------------------------------------------------------------------------------

    def _prices(self, m: int, cost: ArrayLike | None) -> np.ndarray:
        if self.settings.unit == "rollouts":
            return np.ones(m)
        if cost is None:
            raise ValueError("cost is needed: plan.unit=tokens counts expected response tokens of each prompt")
        prices = np.asarray(cost, dtype=np.float64)
        if prices.shape != (m,) or not ((prices > 0) & np.isfinite(prices)).all():
            raise ValueError(f"cost must be ({m},), positive and finite")
        return prices

    def _floors(self, m: int, due: ArrayLike | None) -> np.ndarray:
        """Rollouts that each prompt gets in any case, (M,) int64."""
        must = np.zeros(m, dtype=bool) if due is None else np.asarray(due, dtype=bool)
        if must.shape != (m,):
            raise ValueError(f"due must have shape ({m},); got {must.shape}")
        if self._admits:
            return np.where(must, self._block, 0).astype(np.int64)
        return np.full(m, self.settings.lower, dtype=np.int64)

    def _feasible(self, usual: float, given: float | None, cost: np.ndarray, floor: np.ndarray) -> float:
        budget, plan, m = usual if given is None else given, self.settings, len(cost)
        key = "plan.token_budget" if plan.unit == "tokens" else "plan.budget"
        if not (budget >= 0 and np.isfinite(budget) and (plan.unit == "tokens" or budget == int(budget))):
            raise ValueError(f"{key}={budget} must be a whole number of {plan.unit} >= 0")
        least, most = float(cost @ floor), plan.upper * m
        if plan.mode == "dynamic_sampling" and self._admits:  # the prompts that are due come beyond its budget
            least = 0.0
        if budget < least and self._admits:
            raise ValueError(f"{key}={budget} is less than {least:g}, the first blocks of the prompts that are due")
        if budget < least:
            raise ValueError(
                f"{key}={budget} is less than plan.lower={plan.lower} for each of {m} prompts; "
                f"raise {key} to {least:g} or lower plan.lower"
            )
        if plan.unit == "rollouts" and budget > most:
            raise ValueError(
                f"plan.budget={budget} is more than plan.upper={plan.upper} for each of {m} prompts; "
                f"lower plan.budget to {most} or raise plan.upper (or plan.lower and prompts.per_step)"
            )
        return float(budget)


def _nothing(purse: RolloutBudget, value: Value, step: StepPlan) -> Rule:
    return Rule()


def _evenly(purse: RolloutBudget, value: Value, step: StepPlan) -> Rule:
    return Even(purse)


def _commit(purse: RolloutBudget, value: Value, step: StepPlan) -> Rule:
    return Commit(purse, step)


def _waves(groups: int, size: int, kept: int, purse: RolloutBudget, value: Value, step: StepPlan) -> Rule:
    return Waves(purse, step, groups, size, kept)


__all__ = ["MODES", "KnapsackPlanner"]
