"""Statistics of runs that are paired by their seed. Pure; results are keyed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Seeds = Mapping[int, float]  # seed -> a number


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval by Student's t; low and high are NaN for fewer than two seeds. up: numbers above 0."""

    mean: float
    low: float
    high: float
    seeds: int
    up: int = 0


def interval(numbers: Sequence[float]) -> Interval:
    """Numbers that are not finite are left out."""
    x = np.asarray([number for number in numbers if np.isfinite(number)], dtype=np.float64)
    nan, n = float("nan"), len(x)
    if not n:
        return Interval(nan, nan, nan, 0)
    half = float(stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / np.sqrt(n)) if n > 1 else nan
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half, n, int((x > 0).sum()))


def paired(ours: Seeds, theirs: Seeds) -> Interval:
    """Of ours - theirs over the seeds that both have."""
    return interval([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def ratio(ours: Seeds, theirs: Seeds) -> Interval:
    """Of ours / theirs over the seeds that both have."""
    both = sorted(ours.keys() & theirs.keys())
    return interval([ours[seed] / theirs[seed] if theirs[seed] else float("nan") for seed in both])


def share(ours: Seeds, base: Seeds, ceiling: Seeds) -> float:
    """Of the ceiling's mean gain over base, what ours has: a ratio of means, NaN where the ceiling gains nothing."""
    both = sorted(ours.keys() & base.keys() & ceiling.keys())
    gains = sum(ceiling[seed] - base[seed] for seed in both)
    return sum(ours[seed] - base[seed] for seed in both) / gains if gains > 0 else float("nan")


def cost_to(costs: Sequence[float], accuracies: Sequence[float], goal: float) -> float:
    """The cost at which a curve first reaches the goal, by straight lines between its points; NaN if it never does.

    costs (T,) rising; accuracies (T,).
    """
    for i, accuracy in enumerate(accuracies):
        if accuracy >= goal:
            if i == 0:
                return float(costs[0])
            before = accuracies[i - 1]
            return float(costs[i - 1] + (costs[i] - costs[i - 1]) * (goal - before) / (accuracy - before))
    return float("nan")
