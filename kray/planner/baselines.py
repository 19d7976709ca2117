"""Budgets of the modes that plan at once, published methods among them, as pure functions of one request.

Each returns (M,) int64 rollouts within [lower, upper] whose sum is request.budget; the planner asserts it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kray.planner.beliefs import Beliefs
from kray.planner.quadrature import beta_density, coba_shape, coba_tau
from kray.planner.solver import solve, spread
from kray.planner.values import PointValue, Value


@dataclass(frozen=True)
class PlanRequest:
    """One step to plan.

    Attributes:
        prompt_ids: M of them, whose visit has begun.
        budget: in rollouts; the bounds can meet it.
        lower: least rollouts of each prompt.
        upper: most rollouts of each prompt.
        beliefs: about the prompts' success rates.
        value: of the M prompts, at their posteriors.
        bounds: (M,) each, the least and most rollouts of each prompt, by which static goes (plan.adapt); None: lower and upper.
    """

    prompt_ids: list[str]
    budget: int
    lower: int
    upper: int
    beliefs: Beliefs
    value: Value
    bounds: tuple[np.ndarray, np.ndarray] | None = None


def static(request: PlanRequest) -> np.ndarray:
    """Solve the knapsack of arXiv 2509.25849 on the expected value under each prompt's posterior.

    It needs no fallback and no warm-up: unseen prompts have the prior, unsolved ones keep a share that shrinks with the
    evidence.
    """
    lower, upper = request.bounds or (request.lower, request.upper)
    return solve(request.value, request.budget, lower, upper)


def uniform(request: PlanRequest) -> np.ndarray:
    """Split the budget evenly, as GRPO does; the first prompts of the step get the remainder, one each."""
    m = len(request.prompt_ids)
    each, over = divmod(request.budget, max(m, 1))
    return each + (np.arange(m) < over).astype(np.int64)


def paper(request: PlanRequest) -> np.ndarray:
    """Plan as Knapsack RL was published, arXiv 2509.25849.

    A prompt's success rate is the plain ratio of its latest visit. Prompts without one get their uniform share, so the
    first epoch is uniform; solved prompts (rate 1) get `lower`; the knapsack with the point value spends the rest on
    prompts in between; what it leaves once these are at `upper` goes evenly to unsolved prompts (rate 0).

    Departures: the knapsack is solved exactly (the authors' dynamic programme scores "no extra rollout" as 0); the
    fallback respects `upper` and gives unseen prompts nothing twice (theirs does neither); if unsolved prompts are
    full too, the last rollouts go evenly to solved ones, so that the budget is always spent.
    """
    return _knapsack_on_ratios(request, released=False)


def paper_released(request: PlanRequest) -> np.ndarray:
    """Plan as the code of Knapsack RL's authors does (their verl fork of arXiv 2509.25849).

    Like `paper`, but "no extra rollout" is scored 0, so a prompt's first rollout over `lower` counts as all of
    Value(lower + 1); and the fallback gives rollouts to unseen prompts as well as unsolved ones, on top of their uniform
    share.

    Departures: that objective is maximised by its marginal gains (it stays concave) where they run a dynamic programme,
    and the fallback is capped at `upper` (theirs is not).
    """
    return _knapsack_on_ratios(request, released=True)


class _ReleasedValue(PointValue):
    """PointValue whose first rollout over `lower` has the whole value as its gain, as in the authors' code."""

    def __init__(self, success_rate: np.ndarray, lower: int):
        super().__init__(success_rate)
        self.first = lower
        self._whole = self.total(np.full(len(self), lower + 1))

    def gain_at(self, rows: np.ndarray, n: np.ndarray) -> np.ndarray:
        return np.where(n == self.first, self._whole[rows], super().gain_at(rows, n))


def _knapsack_on_ratios(request: PlanRequest, released: bool) -> np.ndarray:
    successes, trials = request.beliefs.last_visit(request.prompt_ids)
    budgets = uniform(request)
    seen = trials > 0
    left = int(budgets[seen].sum())
    budgets[seen] = request.lower
    left -= int(budgets[seen].sum())
    between = seen & (successes > 0) & (successes < trials)
    unsolved, solved = seen & (successes == 0), seen & (successes == trials)
    share = min(left, (request.upper - request.lower) * int(between.sum()))
    rate = successes[between] / trials[between]
    if between.any():
        bought = request.lower * int(between.sum()) + share
        value = _ReleasedValue(rate, request.lower) if released else PointValue(rate)
        budgets[between] = solve(value, bought, request.lower, request.upper)
    left -= share
    for group in (unsolved | ~seen, solved) if released else (unsolved, solved):
        left -= _give(budgets, group, left, request.upper)
    return budgets


def coba(request: PlanRequest) -> np.ndarray:
    """Plan as CoBA-RL, arXiv 2602.03048, with the constants of its authors' code.

    Uniform until a prompt of the step has labels. Success rates are ratios, 0.5 for unseen prompts; those in
    [0.05, 0.99] share 60-80 % of what `lower` leaves, by the marginal gains of (1 - exp(-N p q / tau)) BetaPDF(p; a_t,
    7 - a_t); the rest goes to very hard prompts, then to the others, then to very easy ones.

    Departures: a ratio is over the latest visit (theirs: three), F over this step's prompts at that visit (theirs: all
    prompts of the last three steps), and the rest goes evenly (theirs: by 1 - p within a class).
    """
    successes, trials = request.beliefs.last_visit(request.prompt_ids)
    seen = trials > 0
    m = len(trials)
    if not seen.any():
        return uniform(request)
    rate = np.full(m, 0.5)
    rate[seen] = successes[seen] / trials[seen]
    budgets = np.full(m, request.lower, dtype=np.int64)
    left = request.budget - int(budgets.sum())
    hard, easy = rate < 0.05, rate > 0.99
    between = ~(hard | easy)
    part = float(between.mean())
    share = int(left * (0.8 if part > 0.5 else 0.6 + 0.4 * part))
    share = min(share, (request.upper - request.lower) * int(between.sum()))
    if share:
        value = _CobaPoint(rate[between], float(1 - rate[seen].mean()))
        bought = share + request.lower * int(between.sum())
        budgets[between] = solve(value, bought, request.lower, request.upper)
        left -= share
    for group in (hard, between, easy):
        left -= _give(budgets, group, left, request.upper)
    return budgets


class _CobaPoint:
    """CoBA-RL's value at known success rates (M,), given the failure rate of recent batches."""

    smallest_group = 2

    def __init__(self, success_rate: np.ndarray, failure_rate: float):
        p = np.clip(success_rate, 0.01, 0.99)
        shape = coba_shape(failure_rate)
        self._density = beta_density(p, shape, 7.0 - shape)
        self._rate = p * (1 - p) / coba_tau(p)

    def __len__(self) -> int:
        return len(self._rate)

    def gain_at(self, rows: np.ndarray, n: np.ndarray) -> np.ndarray:
        rate = self._rate[rows]
        return self._density[rows] * np.exp(-n * rate) * -np.expm1(-rate)

    def gain(self, n: np.ndarray) -> np.ndarray:
        return self.gain_at(np.arange(len(self)), n)

    def total(self, n: np.ndarray) -> np.ndarray:
        return self._density * -np.expm1(-n * self._rate)


def _give(budgets: np.ndarray, group: np.ndarray, left: int, upper: int) -> int:
    """Spread up to `left` rollouts evenly over the prompts of the mask, in place; return how many could be placed."""
    share = min(left, int((upper - budgets[group]).sum()))
    if share:
        budgets[group] = spread(budgets[group], np.full(int(group.sum()), upper), share)
    return share
