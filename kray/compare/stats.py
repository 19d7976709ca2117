"""Statistics of runs that are paired by their seed. Pure; results are keyed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Seeds = Mapping[int, float]  # seed -> a number


ROUNDING = 1e-12  # numbers that differ by less, relative to the largest or to 1, are equal


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval by Student's t; up: numbers above 0.

    low and high are NaN for fewer than two seeds, and where the numbers of all seeds are equal. Equal numbers say nothing of
    how far the next seed may be off: a t interval of them would have no width and decide every claim. They come about where
    an accuracy is a count of few samples, or where two methods did the same, and both are no evidence of a difference. A
    least width from the accuracy's resolution would need that resolution for every measure (an exact rate has none), and
    would still rest on a spread that was not seen.
    """

    mean: float
    low: float
    high: float
    seeds: int
    up: int = 0

    @property
    def flat(self) -> bool:
        """Whether there are several seeds, and no spread between them."""
        return self.seeds > 1 and not np.isfinite(self.low)

    def p_value(self, least: float) -> float:
        """Two-sided, of the t test that the mean is `least`; NaN without an interval."""
        if not np.isfinite(self.low):
            return float("nan")
        error = (self.high - self.mean) / stats.t.ppf(0.975, self.seeds - 1)
        return float(2 * stats.t.sf(abs(self.mean - least) / error, self.seeds - 1))


def has_spread(numbers: Sequence[float]) -> bool:
    """Whether finite numbers differ by more than rounding."""
    x = np.asarray(numbers, dtype=np.float64)
    return bool(len(x) > 1 and np.ptp(x) > ROUNDING * max(1.0, float(np.abs(x).max())))


def interval(numbers: Sequence[float]) -> Interval:
    """Numbers that are not finite are left out."""
    x = np.asarray([number for number in numbers if np.isfinite(number)], dtype=np.float64)
    nan, n = float("nan"), len(x)
    if not n:
        return Interval(nan, nan, nan, 0)
    half = float(stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / np.sqrt(n)) if has_spread(x.tolist()) else nan
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half, n, int((x > 0).sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: rejecting those up to .05 rejects a true hypothesis in at most 5 % of all families.

    The k-th smallest of m is multiplied by m - k + 1 and is at least the one before it. NaN (no test could be made) counts
    in m and stays NaN.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted, largest = np.full(len(p), np.nan), 0.0
    for k, i in enumerate(np.argsort(np.where(np.isnan(p), np.inf, p), kind="stable")):
        if np.isfinite(p[i]):
            largest = max(largest, min(1.0, float(p[i]) * (len(p) - k)))
            adjusted[i] = largest
    return adjusted.tolist()


def paired(ours: Seeds, theirs: Seeds) -> Interval:
    """Of ours - theirs over the seeds that both have."""
    return interval([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def ratio(ours: Seeds, theirs: Seeds) -> Interval:
    """Of ours / theirs over the seeds that both have."""
    both = sorted(ours.keys() & theirs.keys())
    return interval([ours[seed] / theirs[seed] if theirs[seed] else float("nan") for seed in both])


def share(ours: Seeds, base: Seeds, ceiling: Seeds) -> float:
    """Return our share of the ceiling's mean gain over base: a ratio of means, NaN where the ceiling gains nothing."""
    both = sorted(ours.keys() & base.keys() & ceiling.keys())
    gains = sum(ceiling[seed] - base[seed] for seed in both)
    return sum(ours[seed] - base[seed] for seed in both) / gains if gains > 0 else float("nan")


def cost_to(costs: Sequence[float], accuracies: Sequence[float], goal: float) -> float:
    """Return the cost at which a curve first reaches a goal, by straight lines between its points.

    Args:
        costs: (T,) rising.
        accuracies: (T,) at these costs.
        goal: An accuracy.

    Returns:
        NaN if the curve never reaches it.
    """
    for i, accuracy in enumerate(accuracies):
        if accuracy >= goal:
            if i == 0:
                return float(costs[0])
            before = accuracies[i - 1]
            return float(costs[i - 1] + (costs[i] - costs[i - 1]) * (goal - before) / (accuracy - before))
    return float("nan")
