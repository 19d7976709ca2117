"""Tightens the limits of kinds of prompts whose rollouts have little to teach (plan.adapt).

What n rollouts of a prompt had to teach is measured by how far their rewards lie from what is believed of the prompt after
them, m = (alpha + S) / (k + n), with alpha and k = alpha + beta those of the belief that serves as baseline; where the group
is the baseline both are 0, and m is the group's mean. If the belief is as good as k labels, the sum of (r - m)^2 is on average
p q n_eff(n) (kray/planner/baseline_value.py). So over the latest steps

    signal of a kind = sum (r - m)^2 / sum n_eff

estimates the variance p q of its rewards, whatever the size of its groups; where the budget counts tokens it is divided by
their mean cost. It is small where the policy never succeeds and where it always does, and grows when either changes. SHRINKAGE
effective rollouts at the mean signal of all kinds are added, so that few rollouts say little.

A kind that has at least half (ENOUGH) of the mean signal keeps the limits of the configuration. Others go down notch by notch,
to LAST. A notch is a factor of NOTCH on the share of the kind's candidates that are offered to the plan, and an equal part of
the way (in logarithms) from plan.upper to the rollouts that open a prompt, and from plan.lower to the smallest group that
teaches. A kind moves by one notch a step at most: down once its signal over ENOUGH is no more than the share at the next notch,
up once it is at least the share at the one before, so that noise does not move it to and fro. The share of its never-solved
prompts that are tried follows by the same rule from the rollouts that such prompts got.

Nothing is loosened beyond the configuration: what a kind does not get, the plan spends on others. Old steps are forgotten
(MEMORY), so a kind that gets few rollouts is soon taken for an average one and tried again.

Pure; equal labels give equal limits. `to_dict` is the whole state.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kray.metrics import (
    PLANNER_KIND_LOWER,
    PLANNER_KIND_OFFERED,
    PLANNER_KIND_SIGNAL,
    PLANNER_KIND_TRIED,
    PLANNER_KIND_UPPER,
)
from kray.plan_modes import PlanConfig, smallest_group
from kray.planner.limits import StepRequest, first_block, leaves_out_prompts
from kray.planner.values import Value

# Factor on the sums of earlier steps at each new one: about the last ten count.
MEMORY = 0.9
# Effective rollouts at the mean signal that are added to those of a kind.
SHRINKAGE = 32.0
# Share of the mean signal with which a kind keeps the configured limits.
ENOUGH = 0.5
# Factor of one notch on a share, and the last notch: a quarter.
NOTCH, LAST = 0.8, 6
# Kinds whose settings are recorded as metrics, at most.
RECORDED = 64
# Rows of sums and notches: of all prompts of a kind, and of those that were tried and never solved.
ALL, UNSOLVED = 0, 1


class Adaptation:
    """What the rollouts of each kind had to teach, and how tight its limits are."""

    def __init__(self, plan: PlanConfig, kinds: Mapping[str, str] | None = None):
        """Begin without evidence: all limits are those of the configuration.

        Args:
            plan: the settings.
            kinds: prompt id -> its kind, for every prompt that will be planned; None: all are of one kind.
        """
        self._plan = plan
        self.names = sorted(set(kinds.values())) if kinds else ["all"]
        number = {name: i for i, name in enumerate(self.names)}
        # prompt id -> number of its kind
        self.number_of = {prompt_id: number[kind] for prompt_id, kind in kinds.items()} if kinds else {}
        # (2, K, 3), first index ALL or UNSOLVED: effective rollouts, the same times their cost, squared distances
        self._sums = np.zeros((2, len(self.names), 3))
        # (2, K)
        self._notches = np.zeros((2, len(self.names)), dtype=np.int64)
        # those that `news` has told of
        self._told = self._notches

    def numbers(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Return the number of each prompt's kind, (M,) int64; ValueError where one has none."""
        if not self.number_of:
            return np.zeros(len(prompt_ids), dtype=np.int64)
        get = self.number_of.get
        found = np.fromiter((get(i, -1) for i in prompt_ids), np.int64, len(prompt_ids))
        if (found < 0).any():
            raise ValueError(f"kinds: prompt {prompt_ids[int(np.argmin(found))]!r} has none")
        return found

    def limited(
        self, request: StepRequest, kinds: np.ndarray, counts: tuple[np.ndarray, np.ndarray], value: Value
    ) -> tuple[StepRequest, np.ndarray]:
        """Return a step within the limits of its prompts' kinds.

        Prompts that are not offered, or not tried, get their least and no more: 0 where the plan may leave prompts out. Those
        are the ones with the least value. Prompts that are due are offered in any case.

        Args:
            request: the step of M prompts, with the bounds of the configuration.
            kinds: (M,) numbers of the kinds.
            counts: discounted (successes (M,), failures (M,)) of the prompts.
            value: of the prompts.

        Returns:
            (the step with tighter bounds, or with its own where the budget could not be spent within these; (M,) bool, prompts
            that were tried and never solved).
        """
        plan, spare = self._plan, leaves_out_prompts(self._plan)
        unsolved, first = (counts[0] == 0) & (counts[1] > 0), value.total(np.full(len(value), first_block(plan)))
        way = (1 - self._notches[ALL] / LAST)[kinds]
        lower = request.least if spare else np.minimum(request.least, _between(smallest_group(plan), plan.lower, way))
        upper = np.maximum(lower, np.minimum(request.upper, _between(first_block(plan), plan.upper, way)))
        share = NOTCH**self._notches
        free = np.flatnonzero(request.least == 0) if spare else np.arange(len(kinds))
        open_ = np.ones(len(kinds), dtype=bool)
        open_[free] = _best(kinds[free], first[free], share[ALL])
        tried = free[unsolved[free]]
        open_[tried] &= _best(kinds[tried], first[tried], share[UNSOLVED])
        upper = np.where(open_, upper, lower)
        if float(request.cost @ upper) < request.budget:
            return request, unsolved
        return replace(request, least=lower, upper=upper), unsolved

    def after(
        self,
        prompt_ids: Sequence[str],
        unsolved: np.ndarray,
        baseline: np.ndarray,
        rewards: np.ndarray,
        cost: np.ndarray,
    ) -> Adaptation:
        """Return the adaptation with the labels of one more step of M prompts, each kind moved by a notch at most.

        Args:
            prompt_ids: M of them.
            unsolved: (M,) bool, those tried before and never solved.
            baseline: (M, 2) alpha and beta before the step; 0 where the group is the baseline.
            rewards: (3, M) sums of each prompt's rewards, of their squares, and their numbers.
            cost: (M,) of one rollout.
        """
        total, squares, n = rewards.astype(np.float64)
        counts = baseline.sum(axis=1) + n
        mean = np.divide(baseline[:, 0] + total, counts, out=np.zeros_like(n), where=n > 0)
        distance = np.maximum(squares - 2 * mean * total + n * mean**2, 0.0)
        effective = np.divide(n * (counts - 1), counts, out=np.zeros_like(n), where=n > 0)
        kinds, found = self.numbers(prompt_ids), copy.copy(self)
        added = np.zeros_like(self._sums)
        for which, rows in ((ALL, n > 0), (UNSOLVED, unsolved & (n > 0))):
            for column, x in enumerate((effective, effective * cost, distance)):
                added[which, :, column] = np.bincount(kinds[rows], x[rows], len(self.names))
        found._sums = MEMORY * self._sums + added
        wanted, now = found.signals() / ENOUGH, self._notches
        tighter, looser = wanted <= NOTCH ** (now + 1), (now > 0) & (wanted >= NOTCH ** (now - 1.0))
        found._notches = np.minimum(now + tighter, LAST) - looser
        return found

    def signals(self) -> np.ndarray:
        """Return the signal of each kind, and of its never-solved prompts, over the mean of all prompts, (2, K) float64."""
        effective, costs, distance = np.moveaxis(self._sums, 2, 0)
        count, cost, mean = self._sums[ALL].sum(axis=0).tolist()
        if not count or not mean:
            return np.ones_like(effective)
        own = (distance + SHRINKAGE * mean / count) / (costs + SHRINKAGE * cost / count)
        return np.asarray(own / (mean / cost))

    def metrics(self) -> dict[str, float]:
        """Return the signal and the limits of each kind, of at most RECORDED of them."""
        found: dict[str, float] = {}
        signals = self.signals()[ALL]
        for i, name in enumerate(self.names[:RECORDED]):
            offered, tried, lower, upper = self._settings(i, self._notches)
            found[PLANNER_KIND_SIGNAL.of(name)] = float(signals[i])
            found[PLANNER_KIND_OFFERED.of(name)], found[PLANNER_KIND_TRIED.of(name)] = offered, tried
            found[PLANNER_KIND_LOWER.of(name)], found[PLANNER_KIND_UPPER.of(name)] = float(lower), float(upper)
        return found

    def news(self) -> list[str]:
        """Return a line for each kind whose limits have changed since the last call, with the reason."""
        lines, signals = [], self.signals()
        for i in np.flatnonzero((self._notches != self._told).any(axis=0)).tolist():
            was, now = self._settings(i, self._told), self._settings(i, self._notches)
            names = ("share offered", "share of never-solved prompts tried", "plan.lower", "plan.upper")
            changed = [f"{n} {a:g} -> {b:g}" for n, a, b in zip(names, was, now, strict=True) if a != b]
            why = f"rewards varied {signals[ALL, i]:.2f} times as much as those of all prompts"
            why += f", those of never-solved prompts {signals[UNSOLVED, i]:.2f} times"
            lines.append(f"plan.adapt, {self.names[i]}: {', '.join(changed) or 'no limit changed'}; {why}")
        self._told = self._notches
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        parts = (self._sums, self._notches, self._told)
        return {name: [part[:, i].tolist() for part in parts] for i, name in enumerate(self.names)}

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `to_dict` returned; kinds that it lacks begin anew."""
        self._sums, self._notches = np.zeros_like(self._sums), np.zeros_like(self._notches)
        self._told = self._notches.copy()
        for i, name in enumerate(self.names):
            if name in state:
                self._sums[:, i], self._notches[:, i], self._told[:, i] = state[name]

    def _settings(self, kind: int, notches: np.ndarray) -> tuple[float, float, int, int]:
        """Return the share of candidates offered and of never-solved prompts tried, and the least and most rollouts."""
        plan, way = self._plan, np.array([1 - notches[ALL, kind] / LAST])
        least = plan.lower if leaves_out_prompts(plan) else int(_between(smallest_group(plan), plan.lower, way)[0])
        most = int(_between(first_block(plan), plan.upper, way)[0])
        offered, tried = (round(NOTCH ** int(notches[which, kind]), 2) for which in (ALL, UNSOLVED))
        return offered, tried, least, max(least, most)


def _between(low: int, high: int, way: np.ndarray) -> np.ndarray:
    """Return the counts that lie part of the way from low (0) to high (1) in logarithms; high where it is not above low."""
    if high <= low:
        return np.full(len(way), high, dtype=np.int64)
    return np.rint(low * (high / low) ** way).astype(np.int64)


def _best(kinds: np.ndarray, worth: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return which of M prompts belong to the share of their kind that is worth most (the first of equals), (M,) bool.

    Args:
        kinds: (M,) numbers.
        worth: (M,).
        share: (K,) of each kind; at least one prompt is kept.
    """
    order = np.lexsort((-worth, kinds))
    counts = np.bincount(kinds, minlength=len(share))
    begin = np.cumsum(counts) - counts
    rank = np.empty(len(kinds), dtype=np.int64)
    rank[order] = np.arange(len(kinds)) - begin[kinds[order]]
    return np.asarray(rank < np.ceil(share * counts - 1e-9)[kinds])
