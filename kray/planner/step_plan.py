"""Plan of one step, in every mode: rollouts are taken, labels come back, some rollouts are lost, and the plan goes on.

Guarantees, asserted (of one prompt at each of its events, of sums when rollouts are lost and at the end):
- for each prompt: labelled <= drawn <= held <= upper (drawn: dispatched less lost; held: drawn, or allocated and not yet
  dispatched);
- sum(cost * held) + free + forfeited = budget (with `tokens` reported, the excess over their expectation is forfeited);
- a step that is done has nothing left to dispatch, nothing in flight, and nothing free that its mode could still spend.
Equal orders of calls give equal plans: there is no clock and no randomness.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, isfinite
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kray.metrics import PLANNER_ADMITTED, PLANNER_LOST, PLANNER_MIXED, PLANNER_UNSPENT_RATIO
from kray.plan_modes import RESPEND, PlanConfig
from kray.planner.adapting import Adaptation
from kray.planner.baseline_value import BaselineValue
from kray.planner.beliefs import Beliefs
from kray.planner.calibration import Calibration
from kray.planner.greedy import RolloutBudget
from kray.planner.loss_weights import loss_weights
from kray.planner.marginals import log_rising
from kray.planner.modes import Rule
from kray.planner.values import BetaValue, Value
from kray.records import Allocation


@dataclass(frozen=True)
class StepStart:
    """State of a step of M prompts when it begins.

    Attributes:
        prompt_ids: M of them.
        settings: the `plan` section.
        beliefs: that the labels go into.
        before: snapshot of the beliefs, to withdraw the step.
        alpha: (M,) of the beliefs at planning time.
        beta: (M,) of the beliefs at planning time.
        baseline: (M, 2) alpha and beta of the same beliefs, corrected (plan.calibrate), that serve as baseline.
        value: of the M prompts, at these beliefs.
        budget: in rollouts or expected tokens.
        positions: (M,) of the prompts among those that were offered; None: all are in the plan.
        unsolved: (M,) bool, prompts tried before and never solved; None where nobody asks (plan.adapt).
    """

    prompt_ids: list[str]
    settings: PlanConfig
    beliefs: Beliefs
    before: dict[str, Any]
    alpha: np.ndarray
    beta: np.ndarray
    baseline: np.ndarray
    value: Value
    budget: float
    positions: np.ndarray | None = None
    unsolved: np.ndarray | None = None


class StepPlan:
    """Plan of one step, made by KnapsackPlanner.begin.

    `take` returns what to dispatch now; `observe` and `lost` report what became of it.

    Attributes:
        positions: (M,) int64 of its prompts among those that were offered.
        in_flight: rollouts dispatched that have neither a label nor been lost.
        mixed: groups with different labels so far.
    """

    def __init__(self, start: StepStart, budget: RolloutBudget, rule: Callable[[StepPlan], Rule]):
        """Begin the step.

        Args:
            start: the prompts, the settings and the beliefs.
            budget: the step's budget; what it holds is dispatched first.
            rule: makes the rule by which the step goes on.
        """
        self._start, self._budget = start, budget
        self._row = {prompt_id: row for row, prompt_id in enumerate(start.prompt_ids)}
        m = len(start.prompt_ids)
        self.positions = np.arange(m) if start.positions is None else start.positions
        self._belief_rows = start.beliefs.rows(start.prompt_ids).tolist()
        self._pending: deque[tuple[int, int]] = deque((row, k) for row, k in enumerate(budget.held) if k)
        self._drawn, self._labelled, self._lost = [0] * m, [0] * m, [0] * m
        self._passed, self._least, self._most = [0.0] * m, [2.0] * m, [-1.0] * m
        # sums of the squares of rewards
        self._squares = [0.0] * m
        self._binary = start.settings.mode in ("online", "rounds") and start.settings.marginal != "expected_gain"
        # only `expected_mixed` needs the probabilities of mixing
        self._track_mixing = start.settings.target_groups > 0 and start.settings.mode == "online"
        self._mix_probability, self._expected_mixing = [0.0] * m, 0.0
        self._forfeited = 0.0
        self._limit = self._most_in_flight()
        self._withdrawn = False
        self.in_flight = 0
        self.mixed = 0
        self._rule = rule(self)
        self._check()

    def take(self, room: int | None = None) -> list[tuple[str, int]]:
        """Return the rollouts to dispatch now; they count as in flight until `observe` or `lost`.

        Args:
            room: most rollouts to return; None: no limit.

        Returns:
            [(prompt id, rollouts)], a prompt perhaps twice; [] until labels come back, or when the step is `done`.

        Raises:
            ValueError: room is negative.
        """
        if room is not None and room < 0:
            raise ValueError(f"room must be a number of rollouts >= 0 or None; got {room}")
        ids, pending, out = self._start.prompt_ids, self._pending, []
        left = 2**62 if room is None else int(room)
        while left > 0:
            if not pending:
                pending.extend(self._rule.allocate(left))
                if not pending:
                    break
            row, rollouts = pending.popleft()
            if rollouts > left:
                pending.appendleft((row, rollouts - left))
                rollouts = left
            self._drawn[row] += rollouts
            self.in_flight += rollouts
            left -= rollouts
            self._update_mixing(row)
            out.append((ids[row], rollouts))
            assert self._drawn[row] <= self._budget.held[row] <= self._budget.cap[row]
        return out

    def observe(self, prompt_id: str, rewards: ArrayLike, tokens: float | None = None) -> None:
        """Add labels of rollouts in flight; they go into the beliefs at once.

        Args:
            prompt_id: of this step.
            rewards: scalar or (N,) in [0, 1]. A graded reward r counts as r successes and 1 - r failures, and a group is
                mixed when its labels differ; the marginals that stop at mixed groups accept only 0 and 1.
            tokens: response tokens that these rollouts took together; where the budget counts tokens, they replace the
                expectation.

        Raises:
            ValueError: an argument is out of range, or fewer rollouts are in flight; nothing has changed then.
        """
        row = self._known(prompt_id)
        labels = rewards if isinstance(rewards, list) else np.atleast_1d(np.asarray(rewards, dtype=np.float64)).tolist()
        n = len(labels)
        if n > self._drawn[row] - self._labelled[row]:
            in_flight = self._drawn[row] - self._labelled[row]
            raise ValueError(f"rewards: {n} labels of prompt {prompt_id}, which has {in_flight} rollouts in flight")
        for label in labels:
            if not (label in (0, 1) if self._binary else 0 <= label <= 1):
                wanted = "be 0 or 1 for this plan.marginal" if self._binary else "lie in [0, 1]"
                raise ValueError(f"rewards of prompt {prompt_id} must {wanted}; got {label!r}")
        if tokens is not None and not (isfinite(tokens) and tokens >= 0):
            raise ValueError(f"tokens of prompt {prompt_id} must be finite and not negative; got {tokens}")
        if not n:
            return
        passed = float(sum(labels))
        was_mixed = self._most[row] > self._least[row]
        self._least[row], self._most[row] = min(self._least[row], *labels), max(self._most[row], *labels)
        self.mixed += self._most[row] > self._least[row] and not was_mixed
        self._labelled[row] += n
        self._passed[row] += passed
        self._squares[row] += float(sum(label * label for label in labels))
        self.in_flight -= n
        self._start.beliefs.add(self._belief_rows[row], passed, n)
        self._update_mixing(row)
        self._rule.on_labels(row, passed, n - passed)
        if tokens is not None and self._start.settings.unit == "tokens":
            excess = tokens - self._budget.cost[row] * n
            self._forfeited += excess
            self._budget.free -= excess
            if excess < 0:
                self._rule.on_refund()
        assert self.in_flight >= 0

    def lost(self, prompt_id: str, rollouts: int = 1) -> None:
        """Report rollouts in flight that failed for good.

        In the modes static, online and rounds their budget is spent on other prompts, and this one gets no more in this step;
        other modes forfeit it and go on as planned.

        Raises:
            ValueError: fewer rollouts of the prompt are in flight.
        """
        row = self._known(prompt_id)
        in_flight = self._drawn[row] - self._labelled[row]
        if not 0 <= rollouts <= in_flight or rollouts != int(rollouts):
            raise ValueError(f"rollouts: {rollouts} of prompt {prompt_id} cannot be lost; {in_flight} are in flight")
        if not rollouts:
            return
        budget, cost = self._budget, self._budget.cost[row]
        self._drawn[row] -= rollouts
        budget.held[row] -= rollouts
        self._lost[row] += rollouts
        self.in_flight -= rollouts
        if self._start.settings.mode in RESPEND:
            self._pending = deque(item for item in self._pending if item[0] != row)
            budget.free += cost * (rollouts + budget.held[row] - self._drawn[row])
            budget.held[row] = budget.cap[row] = self._drawn[row]
        else:
            self._forfeited += cost * rollouts
        self._update_mixing(row)
        self._rule.on_loss(row)
        self._check()

    @property
    def done(self) -> bool:
        """Whether nothing is in flight and nothing more will be dispatched."""
        if self.in_flight or self._pending:
            return False
        # no label can come back any more, so allocating early changes nothing
        self._pending.extend(self._rule.allocate(1))
        if not self._pending:
            self._check()
        return not self._pending

    def room(self, free: int | None = None) -> int | None:
        """Return how many rollouts may be dispatched now under plan.in_flight; None: any number.

        Args:
            free: the pool's own limit; None: it has none.
        """
        if not self._limit:
            return free
        room = max(0, self._limit - self.in_flight)
        return room if free is None else min(room, free)

    def _most_in_flight(self) -> int:
        """Return the limit of plan.in_flight in rollouts, a quarter of the budget for 0 in mode online; 0: any number."""
        limit = self._start.settings.in_flight
        if not limit and self._start.settings.mode == "online":
            costs = self._budget.cost
            mean = sum(costs) / len(costs) if costs else 1.0
            limit = max(1, int(self._start.budget / mean / 4))
        return limit

    def allocation(self) -> Allocation:
        """Return the budgets dispatched (less lost ones), the loss weights, and what was expected at planning time.

        expected_success is the posterior mean and expected_value that of BetaValue at the posterior, in every mode, so that
        plans of different modes can be compared; with plan.value baseline it is the plan's own value, since BetaValue is 0 for
        a group of one. Weights (`loss_weights`) sum to the sum of the budgets of the prompts that are trained on; prompts that
        the mode leaves out of the loss (dynamic_sampling, pilot_commit) have weight 0.
        """
        start = self._start
        mixed = np.array([self._is_mixed(row) for row in range(len(start.prompt_ids))], dtype=bool)
        budgets = np.array(self._drawn, dtype=np.int64)
        own = start.value if isinstance(start.value, BaselineValue) else None
        return Allocation(
            prompt_ids=start.prompt_ids,
            budgets=budgets,
            weights=loss_weights(
                start.settings, budgets, self._rule.trained(budgets > 0, mixed), self._weighing_value()
            ),
            expected_success=start.alpha / (start.alpha + start.beta),
            expected_value=(own if own is not None else BetaValue(start.alpha, start.beta)).total(budgets),
            beliefs=start.baseline,
        )

    def metrics(self) -> dict[str, float]:
        """Return planner/admitted, planner/lost, planner/unspent_ratio (by expected cost) and planner/mixed."""
        spent = sum(c * n for c, n in zip(self._budget.cost, self._drawn, strict=True))
        return {
            PLANNER_ADMITTED: float(sum(n > 0 for n in self._drawn)),
            PLANNER_LOST: float(sum(self._lost)),
            PLANNER_UNSPENT_RATIO: 1 - spent / self._start.budget if self._start.budget else 0.0,
            PLANNER_MIXED: float(self.mixed),
        }

    def withdraw(self) -> None:
        """Undo the step and all its labels, as if it had not been planned. The plan cannot be used afterwards."""
        if not self._withdrawn:
            self._start.beliefs.restore(self._start.before)
            self._withdrawn = True
            self._row = {}

    def success_rate(self) -> np.ndarray:
        """Return the success rate of this step's labels, (M,) float64; 0.5 without labels."""
        n = np.array(self._labelled, dtype=np.float64)
        return np.divide(self._passed, n, out=np.full(len(n), 0.5), where=n > 0)

    def labels(self) -> list[tuple[float, float]]:
        """Return (successes, failures) of this step's labels for each prompt."""
        return [(s, n - s) for s, n in zip(self._passed, self._labelled, strict=True)]

    def calibrate(self, calibration: Calibration) -> None:
        """Add the beliefs at planning time and the labels of this step."""
        start = self._start
        calibration.add(start.alpha, start.beta, *map(np.array, (self._passed, self._squares, self._labelled)))

    def adapted(self, adaptation: Adaptation) -> Adaptation:
        """Return the adaptation with the labels of this step."""
        start = self._start
        assert start.unsolved is not None
        believed = start.baseline if start.settings.value == "baseline" else np.zeros_like(start.baseline)
        rewards = np.array([self._passed, self._squares, self._labelled])
        return adaptation.after(start.prompt_ids, start.unsolved, believed, rewards, np.array(self._budget.cost))

    def expected_mixed(self) -> float:
        """Return the mixed groups, and the expected number of those that rollouts in flight will mix.

        A group with j rollouts in flight becomes mixed with probability 1 - E[q^j] where all labels failed, 1 - E[p^j] where
        all passed, and 1 - E[p^j] - E[q^j] (j >= 2) without labels.
        """
        # 1e-9: the sum of many small changes rounds
        return self.mixed + self._expected_mixing + 1e-9

    def _is_mixed(self, row: int) -> bool:
        return self._most[row] > self._least[row]

    def _weighing_value(self) -> Value:
        """Return the value by which `loss_weights` divides: at the beliefs after this step's labels for `hindsight`."""
        start = self._start
        if start.settings.weights != "hindsight" or start.settings.mode == "weight_only":
            return start.value
        passed = np.array(self._passed)
        alpha, beta = start.alpha + passed, start.beta + np.array(self._labelled) - passed
        return start.value.updated(alpha, beta) if isinstance(start.value, BaselineValue) else BetaValue(alpha, beta)

    def _update_mixing(self, row: int) -> None:
        """Keep the sum of the probabilities of mixing up to date after an event of the prompt."""
        if self._track_mixing:
            probability = self._probability_of_mixing(row)
            self._expected_mixing += probability - self._mix_probability[row]
            self._mix_probability[row] = probability

    def _probability_of_mixing(self, row: int) -> float:
        n, s = self._labelled[row], self._passed[row]
        in_flight = self._drawn[row] - n
        if not in_flight or self._is_mixed(row):
            return 0.0
        a, b = float(self._start.alpha[row]) + s, float(self._start.beta[row]) + n - s
        below = log_rising(a + b, in_flight)
        all_pass, all_fail = exp(log_rising(a, in_flight) - below), exp(log_rising(b, in_flight) - below)
        if n:
            return 1 - (all_fail if self._most[row] == 0 else all_pass)
        return max(0.0, 1 - all_pass - all_fail)

    def _known(self, prompt_id: str) -> int:
        if self._withdrawn:
            raise ValueError("prompt_id: this step has been withdrawn")
        try:
            return self._row[prompt_id]
        except KeyError:
            raise ValueError(f"prompt_id {prompt_id!r} is not in this step's plan") from None

    def _check(self) -> None:
        """Assert the budget identity over all prompts, and each prompt's counts."""
        budget = self._budget
        held = sum(c * n for c, n in zip(budget.cost, budget.held, strict=True))
        total = self._start.budget
        off = abs(held + budget.free + self._forfeited - total)
        assert off <= 1e-6 * (1 + total), (held, budget.free, self._forfeited, total)
        assert all(
            labelled <= drawn <= kept
            for labelled, drawn, kept in zip(self._labelled, self._drawn, budget.held, strict=True)
        )
        assert self.in_flight == sum(self._drawn) - sum(self._labelled)
        assert sum(budget.held) - sum(self._drawn) == sum(k for _, k in self._pending)


def ids_of(prompt_ids: Sequence[str]) -> list[str]:
    """Return the ids as a list; raise ValueError on an id given twice."""
    ids = list(prompt_ids)
    if len(set(ids)) != len(ids):
        raise ValueError("prompt_ids holds an id twice; a step visits a prompt once")
    return ids
