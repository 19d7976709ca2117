"""Chooses prompts and their rollouts at once, from any number of candidates: mode static with plan.value baseline.

Everything that is done for every candidate is done by numpy, so that a step may have all training prompts as its candidates.
Only the chosen prompts become part of the step's plan: the others are neither visited nor discounted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kray.plan_modes import PlanConfig
from kray.planner.adapting import Adaptation
from kray.planner.baseline_value import BaselineValue
from kray.planner.beliefs import Beliefs
from kray.planner.greedy import Greedy, RolloutBudget
from kray.planner.limits import leaves_out_prompts
from kray.planner.marginals import make_marginal
from kray.planner.solver import solve
from kray.planner.step_plan import ids_of


def admits_at_once(plan: PlanConfig) -> bool:
    """Return whether the plan of a step is made at once although prompts may be left out."""
    return plan.mode == "static" and plan.value == "baseline" and leaves_out_prompts(plan)


class Candidates:
    """Prompts among which steps choose, by position; it remembers their rows in the beliefs from step to step."""

    def __init__(
        self, prompt_ids: Sequence[str], labels: Sequence[str] | None = None, features: ArrayLike | None = None
    ):
        """Take the prompts.

        Args:
            prompt_ids: N of them.
            labels: N names of the groups whose prior each prompt has, or None.
            features: (N, d) for plan.prior_features, or None.

        Raises:
            ValueError: an id is given twice, or labels or features are not one for each prompt.
        """
        ids = ids_of(prompt_ids)
        # an array of objects, so that positions select many at a time
        self._ids = np.empty(len(ids), dtype=object)
        self._ids[:] = ids
        if labels is not None and len(labels) != len(ids):
            raise ValueError(f"labels must be one for each of {len(ids)} prompts; got {len(labels)}")
        self._labels = labels
        self._features = None if features is None else np.asarray(features, dtype=np.float64)
        if self._features is not None and len(self._features) != len(ids):
            raise ValueError(f"features must be ({len(ids)}, d); got {self._features.shape}")
        self._beliefs: Beliefs | None = None
        # prompts in the beliefs when the rows were looked up
        self._known = -1
        self._rows = np.zeros(0, dtype=np.int64)
        self._label_numbers: np.ndarray | None = None
        # numbers of all kinds, and the table that they were looked up in
        self._kinds = np.zeros(0, dtype=np.int64)
        self._kinds_of: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def offer(self, at: np.ndarray) -> Offer:
        """Return the prompts at the positions `at` (K,), which differ, as the candidates of a step."""
        return Offer(self, at)

    def ids(self, at: np.ndarray) -> list[str]:
        """Return the ids at the positions `at` (K,)."""
        found: list[str] = self._ids[at].tolist()
        return found

    def features(self, at: np.ndarray) -> np.ndarray | None:
        """Return the features (K, d) at the positions `at` (K,), or None."""
        return None if self._features is None else self._features[at]

    def kinds(self, at: np.ndarray, adaptation: Adaptation) -> np.ndarray:
        """Return the numbers of the kinds (plan.adapt) at the positions `at` (K,), (K,) int64."""
        if self._kinds_of is not adaptation.number_of:
            self._kinds, self._kinds_of = adaptation.numbers(self._ids.tolist()), adaptation.number_of
        return self._kinds[at]

    def posterior(
        self, at: np.ndarray, beliefs: Beliefs, prior: tuple[np.ndarray, np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (alpha (K,), beta (K,)) at the positions `at` (K,), as they would be if a visit of all of them began."""
        if beliefs is not self._beliefs:
            self._beliefs, self._known = beliefs, -1
            self._label_numbers = None if self._labels is None else beliefs.label_numbers(self._labels)
        if self._known != len(beliefs):
            self._rows, self._known = beliefs.find(self._ids.tolist()), len(beliefs)
        labels = None if self._label_numbers is None else self._label_numbers[at]
        return beliefs.posterior_at(self._rows[at], labels, prior, visiting=True)

    def begin_visit(self, at: np.ndarray, beliefs: Beliefs) -> np.ndarray:
        """Begin a visit of the prompts at the positions `at` (K,); return their rows in the beliefs, (K,) int64."""
        ids = self.ids(at)
        beliefs.begin_visit(ids, None if self._labels is None else [self._labels[i] for i in at.tolist()])
        rows = beliefs.rows(ids)
        if beliefs is self._beliefs:
            self._rows[at], self._known = rows, len(beliefs)
        return rows


class Offer(Sequence[str]):
    """The candidates of one step: ids of prompts, and where these are among the Candidates.

    Attributes:
        candidates: the prompts that are known.
        at: (M,) int64 positions of those that are offered.
    """

    def __init__(self, candidates: Candidates, at: np.ndarray):
        self.candidates, self.at = candidates, at

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, key: Any) -> Any:
        found = self.candidates.ids(np.atleast_1d(self.at[key]))
        return found if isinstance(key, slice) else found[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.candidates.ids(self.at))


def offer_of(
    prompt_ids: Sequence[str], labels: Sequence[str] | None = None, features: ArrayLike | None = None
) -> Offer:
    """Return the ids as an Offer, of Candidates that hold nothing else where they are not one already."""
    if isinstance(prompt_ids, Offer):
        return prompt_ids
    return Candidates(prompt_ids, labels, features).offer(np.arange(len(prompt_ids)))


def kinds_and_counts(
    prompt_ids: Sequence[str], adaptation: Adaptation, beliefs: Beliefs
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return the number of each prompt's kind (M,), and its discounted (successes (M,), failures (M,)), for plan.adapt."""
    none = np.zeros(len(prompt_ids)), np.zeros(len(prompt_ids))
    if isinstance(prompt_ids, Offer):
        known, at = prompt_ids.candidates, prompt_ids.at
        return known.kinds(at, adaptation), known.posterior(at, beliefs, none)
    return adaptation.numbers(prompt_ids), beliefs.posterior(prompt_ids, none)


def choose(
    plan: PlanConfig,
    value: BaselineValue,
    least: np.ndarray,
    block: int,
    cost: np.ndarray,
    budget: float,
    upper: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose prompts and their rollouts so that the value is largest.

    Exact where the budget counts rollouts and `block` is 1; else within one block, or one rollout's cost, of the optimum.

    Args:
        plan: the settings.
        value: of the M candidates.
        least: (M,) int64 rollouts that each gets in any case, 0 or `block`.
        block: least rollouts of a prompt that is visited.
        cost: (M,) of one rollout, in plan.unit.
        budget: in plan.unit; it pays for `least`.
        upper: (M,) int64 most rollouts of each, 0 or at least `block`; None: plan.upper.

    Returns:
        (rows (K,) int64 ascending, rollouts (K,) int64 > 0).
    """
    upper = np.full(len(least), plan.upper, dtype=np.int64) if upper is None else upper
    rows = _best_opened(value, least, block, cost, budget - float(cost @ least), upper > 0)
    part, low, high, prices = value.part(rows), least[rows], upper[rows], cost[rows]
    if block <= 1:
        priced = None if plan.unit == "rollouts" else prices
        held = solve(part, budget, low, high, priced)
    else:
        held = _in_blocks(plan, part, low, high, block, prices, budget)
    opened = held > 0
    return rows[opened], held[opened]


def _best_opened(
    value: BaselineValue, least: np.ndarray, block: int, cost: np.ndarray, left: float, may: np.ndarray
) -> np.ndarray:
    """Return the rows that can be part of the best plan, ascending: those with `least`, and as many others as `left` opens.

    The others are those of `may` (M,) whose first block has the largest gain per unit of cost (the first of equals). A prompt
    behind them is never better: gains fall, so each of its rollouts could be exchanged for the first block of one of these.
    """
    m = len(least)
    first = value.gain_at(np.arange(m), np.zeros(m, dtype=np.int64))
    if block > 1:
        first = value.total(np.full(m, block)) / block
    rate = np.where(least > 0, np.inf, np.where(may, first / cost, -1.0))
    forced = int(np.count_nonzero(least))
    if not m or cost.min() == cost.max():
        wanted = forced + int(left // (block * float(cost[0]))) if m else 0
    else:
        order = np.argsort(-rate, kind="stable")
        wanted = forced + int(np.searchsorted(np.cumsum(block * cost[order[forced:]]), left, side="right")) + 1
    if wanted >= m:
        return np.arange(m)
    if not wanted:
        return np.zeros(0, dtype=np.int64)
    level = np.partition(rate, m - wanted)[m - wanted]
    above = np.flatnonzero(rate > level)
    tied = np.flatnonzero(rate == level)[: wanted - len(above)]
    return np.sort(np.concatenate([above, tied]))


def _in_blocks(
    plan: PlanConfig,
    value: BaselineValue,
    least: np.ndarray,
    upper: np.ndarray,
    block: int,
    cost: np.ndarray,
    budget: float,
) -> np.ndarray:
    """Return the rollouts (K,) where a prompt is opened by several together (plan.lower > 1), by the greedy allocation."""
    spent = RolloutBudget(
        held=least.tolist(),
        cap=np.maximum(least, upper).tolist(),
        cost=cost.tolist(),
        free=budget - float(cost @ least),
        block=block,
        partial_blocks=False,
        tolerance=1e-9 * (1 + budget),
    )
    opening = value.total(np.full(len(value), block)) / block
    marginal = make_marginal(plan.marginal, value, least, plan.target_size)
    Greedy(marginal, spent, opening).allocate(2**62)
    return np.array(spent.held, dtype=np.int64)
