"""One step's plan, in every mode: rollouts are taken, labels come back, some are lost, and the plan goes on.

Promises, asserted (what is about one prompt at its every event, sums over all when rollouts are lost and at the end):
- of each prompt: labelled <= drawn <= held <= upper (drawn: dispatched less lost; held: drawn and promised);
- sum(cost * held) + free + forfeited = budget (with `tokens` reported, the excess over their expectation is forfeited);
- a step that is done has nothing promised and nothing in flight, and nothing free that its mode could still spend.
Equal orders of calls give equal plans: no clock, no chance.
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
from kray.planner.beliefs import Beliefs
from kray.planner.greedy import RolloutBudget
from kray.planner.marginals import rising
from kray.planner.modes import Rule
from kray.planner.solver import solve
from kray.planner.values import BetaValue, Value
from kray.records import Allocation


@dataclass(frozen=True)
class Start:
    """What a step begins with. alpha, beta (M,): the beliefs at planning time; value: of the M prompts, at them."""

    prompt_ids: list[str]
    settings: PlanConfig
    beliefs: Beliefs
    before: dict[str, Any]  # snapshot of the beliefs, to withdraw the step
    alpha: np.ndarray
    beta: np.ndarray
    value: Value
    budget: float  # in rollouts or expected tokens
    binary: bool  # labels other than 0 and 1 are refused
    groups: int = 0  # mixed groups after which the step may stop; 0: it spends its budget


class StepPlan:
    """Made by KnapsackPlanner.begin. `take` says what to dispatch now, `observe` and `lost` what became of it."""

    def __init__(self, start: Start, purse: RolloutBudget, rule: Callable[[StepPlan], Rule]):
        self._start, self._purse = start, purse
        self._row = {prompt_id: row for row, prompt_id in enumerate(start.prompt_ids)}
        m = len(start.prompt_ids)
        self._belief_rows = start.beliefs.rows(start.prompt_ids).tolist()
        self._pending: deque[tuple[int, int]] = deque((row, k) for row, k in enumerate(purse.held) if k)
        self._drawn, self._labelled, self._lost = [0] * m, [0] * m, [0] * m
        self._passed, self._least, self._most = [0.0] * m, [2.0] * m, [-1.0] * m
        self._hoping = start.groups > 0 and start.settings.mode == "online"
        self._chance, self._hope = [0.0] * m, 0.0
        self._forfeited = 0.0
        self._limit = self._most_in_flight()
        self._withdrawn = False
        self.in_flight = 0
        self.mixed = 0
        self._rule = rule(self)
        self._check()

    # -- the four calls of a driver ------------------------------------------------------------------------------------

    def take(self, room: int | None = None) -> list[tuple[str, int]]:
        """Rollouts to dispatch now, at most `room` (None: no limit): [(prompt id, rollouts)], a prompt perhaps twice.

        They count as in flight until `observe` or `lost`. [] means: nothing until labels come back, or `done`.
        """
        if room is not None and room < 0:
            raise ValueError(f"room must be a number of rollouts >= 0 or None; got {room}")
        ids, pending, out = self._start.prompt_ids, self._pending, []
        left = 2**62 if room is None else int(room)
        while left > 0:
            if not pending:
                pending.extend(self._rule.more(left))
                if not pending:
                    break
            row, rollouts = pending.popleft()
            if rollouts > left:
                pending.appendleft((row, rollouts - left))
                rollouts = left
            self._drawn[row] += rollouts
            self.in_flight += rollouts
            left -= rollouts
            self._expect(row)
            out.append((ids[row], rollouts))
            assert self._drawn[row] <= self._purse.held[row] <= self._purse.cap[row]
        return out

    def observe(self, prompt_id: str, rewards: ArrayLike, tokens: float | None = None) -> None:
        """Labels of rollouts in flight: rewards, scalar or (N,), in [0, 1]; they go into the beliefs at once.

        A graded reward r counts as r successes and 1 - r failures, and a group as mixed when its labels differ; marginals
        that stop at mixed need 0 and 1 alone. tokens: what these rollouts really took together; where the budget counts
        tokens it replaces their expectation. ValueError, without any change, on anything else.
        """
        row = self._known(prompt_id)
        labels = rewards if isinstance(rewards, list) else np.atleast_1d(np.asarray(rewards, dtype=np.float64)).tolist()
        n = len(labels)
        if n > self._drawn[row] - self._labelled[row]:
            flying = self._drawn[row] - self._labelled[row]
            raise ValueError(f"rewards: {n} labels of prompt {prompt_id}, which has {flying} rollouts in flight")
        for label in labels:
            if not (label in (0, 1) if self._start.binary else 0 <= label <= 1):
                wanted = "be 0 or 1 for this plan.marginal" if self._start.binary else "lie in [0, 1]"
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
        self.in_flight -= n
        self._start.beliefs.add(self._belief_rows[row], passed, n)
        self._expect(row)
        self._rule.labelled(row, passed, n - passed)
        if tokens is not None and self._start.settings.unit == "tokens":
            excess = tokens - self._purse.cost[row] * n
            self._forfeited += excess
            self._purse.free -= excess
            if excess < 0:
                self._rule.refunded()
        assert self.in_flight >= 0

    def lost(self, prompt_id: str, rollouts: int = 1) -> None:
        """Rollouts in flight that failed for good.

        In static, online and rounds their budget is spent on other prompts, and this one gets no more in this step; other
        modes forfeit it and go on as planned. ValueError when so many are not in flight.
        """
        row = self._known(prompt_id)
        flying = self._drawn[row] - self._labelled[row]
        if not 0 <= rollouts <= flying or rollouts != int(rollouts):
            raise ValueError(f"rollouts: {rollouts} of prompt {prompt_id} cannot be lost; {flying} are in flight")
        if not rollouts:
            return
        purse, cost = self._purse, self._purse.cost[row]
        self._drawn[row] -= rollouts
        purse.held[row] -= rollouts
        self._lost[row] += rollouts
        self.in_flight -= rollouts
        if self._start.settings.mode in RESPEND:
            self._pending = deque(item for item in self._pending if item[0] != row)
            purse.free += cost * (rollouts + purse.held[row] - self._drawn[row])
            purse.held[row] = purse.cap[row] = self._drawn[row]
        else:
            self._forfeited += cost * rollouts
        self._expect(row)
        self._rule.lost(row)
        self._check()

    @property
    def done(self) -> bool:
        """Nothing is in flight and nothing more will be dispatched."""
        if self.in_flight or self._pending:
            return False
        self._pending.extend(self._rule.more(1))  # nothing can come back any more, so asking early changes nothing
        if not self._pending:
            self._check()
        return not self._pending

    # -- what it says about itself -------------------------------------------------------------------------------------

    def room(self, free: int | None = None) -> int | None:
        """Rollouts that may be dispatched now under plan.in_flight, and at most `free`, the pool's own limit; None: any.

        plan.in_flight = 0 means a quarter of the budget in mode online, and no limit in the others.
        """
        if not self._limit:
            return free
        room = max(0, self._limit - self.in_flight)
        return room if free is None else min(room, free)

    def _most_in_flight(self) -> int:
        """0: any number."""
        limit = self._start.settings.in_flight
        if not limit and self._start.settings.mode == "online":
            costs = self._purse.cost
            mean = sum(costs) / len(costs) if costs else 1.0
            limit = max(1, int(self._start.budget / mean / 4))
        return limit

    def allocation(self) -> Allocation:
        """Budgets really dispatched (less lost ones), loss weights, and what was expected of them at planning time.

        expected_success is the posterior mean and expected_value the expected value at the posterior (values.py), in
        every mode, so that plans of different modes compare. Weights (plan.weights) sum to the budgets' sum; prompts that
        the mode leaves out of the loss (dynamic_sampling, pilot_commit) have weight 0, and their budgets are not in the sum.
        """
        start = self._start
        budgets = np.array(self._drawn, dtype=np.int64)
        return Allocation(
            prompt_ids=start.prompt_ids,
            budgets=budgets,
            weights=self._weights(budgets),
            expected_success=start.alpha / (start.alpha + start.beta),
            expected_value=BetaValue(start.alpha, start.beta).total(budgets),
        )

    def metrics(self) -> dict[str, float]:
        """planner/admitted: prompts with rollouts; planner/lost: rollouts; planner/unspent_ratio: of the budget, by expected
        cost; planner/mixed: groups with different labels."""
        spent = sum(c * n for c, n in zip(self._purse.cost, self._drawn, strict=True))
        return {
            PLANNER_ADMITTED: float(sum(n > 0 for n in self._drawn)),
            PLANNER_LOST: float(sum(self._lost)),
            PLANNER_UNSPENT_RATIO: 1 - spent / self._start.budget if self._start.budget else 0.0,
            PLANNER_MIXED: float(self.mixed),
        }

    def withdraw(self) -> None:
        """Takes the step back with all its labels: as if it had never been planned. The plan cannot be used after it."""
        if not self._withdrawn:
            self._start.beliefs.restore(self._start.before)
            self._withdrawn = True
            self._row = {}

    def success_rate(self) -> np.ndarray:
        """Of this step's labels, (M,) float64; 0.5 without any."""
        n = np.array(self._labelled, dtype=np.float64)
        return np.divide(self._passed, n, out=np.full(len(n), 0.5), where=n > 0)

    def labels(self) -> list[tuple[float, float]]:
        """(successes, failures) of this step by prompt."""
        return [(s, n - s) for s, n in zip(self._passed, self._labelled, strict=True)]

    def expected_mixed(self) -> float:
        """Mixed groups, and those whose rollouts in flight may yet mix them by their probability of doing so.

        That is 1 - E[q^j] for an all-fail group with j in flight, 1 - E[p^j] for an all-pass one, and with no labels
        1 - E[p^j] - E[q^j] (j >= 2).
        """
        return self.mixed + self._hope + 1e-9  # a sum of many small changes

    def _is_mixed(self, row: int) -> bool:
        return self._most[row] > self._least[row]

    def _expect(self, row: int) -> None:
        """Keeps the sum of the chances of mixing up to date after an event of the prompt."""
        if self._hoping:
            chance = self._chance_of_mixing(row)
            self._hope += chance - self._chance[row]
            self._chance[row] = chance

    def _chance_of_mixing(self, row: int) -> float:
        n, s = self._labelled[row], self._passed[row]
        flying = self._drawn[row] - n
        if not flying or self._is_mixed(row):
            return 0.0
        a, b = float(self._start.alpha[row]) + s, float(self._start.beta[row]) + n - s
        below = rising(a + b, flying)
        all_pass, all_fail = exp(rising(a, flying) - below), exp(rising(b, flying) - below)
        if n:
            return 1 - (all_fail if self._most[row] == 0 else all_pass)
        return max(0.0, 1 - all_pass - all_fail)

    def _weights(self, budgets: np.ndarray) -> np.ndarray:
        """Of each prompt in the loss, (M,); 0: its group is left out of the loss and of its denominator.

        They sum to the rollouts of the prompts that are not left out, so that leaving some out changes no scale.
        """
        on = self._rule.learned(budgets > 0, np.array([self._is_mixed(row) for row in range(len(budgets))], dtype=bool))
        weights = np.zeros(len(budgets))
        if not on.any():
            return weights
        kind = "knapsack" if self._start.settings.mode == "weight_only" else self._start.settings.weights
        if kind == "rollouts":
            weights[on] = budgets[on]
        elif kind == "uniform":
            weights[on] = budgets[on].sum() / on.sum()
        else:
            weights[on] = self._by_knapsack(kind, np.flatnonzero(on), int(budgets[on].sum()))
        return weights

    def _by_knapsack(self, kind: str, rows: np.ndarray, rollouts: int) -> np.ndarray:
        """What static would give these prompts of so many rollouts, by the beliefs before the step or after it; at least one
        each, since a weight of 0 would leave the group out."""
        start, settings = self._start, self._start.settings
        value: Value = start.value
        if kind == "hindsight":
            passed = np.array(self._passed)
            value = BetaValue(start.alpha + passed, start.beta + np.array(self._labelled) - passed)
        low = min(max(settings.lower, 1), rollouts // len(rows))
        high = max(settings.upper, -(-rollouts // len(rows)))
        return solve(_Part(value, rows), rollouts, low, high)

    def _known(self, prompt_id: str) -> int:
        if self._withdrawn:
            raise ValueError("prompt_id: this step has been withdrawn")
        try:
            return self._row[prompt_id]
        except KeyError:
            raise ValueError(f"prompt_id {prompt_id!r} is not in this step's plan") from None

    def _check(self) -> None:
        """The budget identity over all prompts, and each prompt's counts."""
        purse = self._purse
        held = sum(c * n for c, n in zip(purse.cost, purse.held, strict=True))
        budget = self._start.budget
        off = abs(held + purse.free + self._forfeited - budget)
        assert off <= 1e-6 * (1 + budget), (held, purse.free, self._forfeited, budget)
        assert all(
            labelled <= drawn <= kept
            for labelled, drawn, kept in zip(self._labelled, self._drawn, purse.held, strict=True)
        )
        assert self.in_flight == sum(self._drawn) - sum(self._labelled)
        assert sum(purse.held) - sum(self._drawn) == sum(k for _, k in self._pending)


class _Part:
    """Some prompts of a value, as a value of their own."""

    def __init__(self, value: Value, rows: np.ndarray):
        self._value, self._rows = value, rows

    def __len__(self) -> int:
        return len(self._rows)

    def gain_at(self, rows: np.ndarray, n: np.ndarray) -> np.ndarray:
        return self._value.gain_at(self._rows[rows], n)

    def gain(self, n: np.ndarray) -> np.ndarray:
        return self.gain_at(np.arange(len(self)), n)

    def total(self, n: np.ndarray) -> np.ndarray:
        whole = np.zeros(len(self._value), dtype=np.int64)
        whole[self._rows] = n
        return self._value.total(whole)[self._rows]


def ids_of(prompt_ids: Sequence[str]) -> list[str]:
    """As a list; ValueError on an id given twice."""
    ids = list(prompt_ids)
    if len(set(ids)) != len(ids):
        raise ValueError("prompt_ids holds an id twice; a step visits a prompt once")
    return ids
