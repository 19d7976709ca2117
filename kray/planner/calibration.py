"""Corrects the beliefs that serve as baseline by how well those of earlier steps predicted rewards.

A belief may be wrong in a way that its own prompt's labels do not show in time: the policy has moved since the last visit, the
prior or the discount is off, labels are noisy. Over the latest steps the rewards are therefore regressed on the success rates
that were believed before them, r = c + s m, and the strength that the beliefs deserve, w k instead of k = alpha + beta, is the
one whose leave-one-out baselines came closest to the rewards. Beliefs that predict nothing get s = 0, which leaves the mean of
all prompts, and a small w, which leaves the mean of the group's others. Only steps before the present one count, so baselines
stay independent of the rewards that they are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# Factor on the sums of earlier steps at each new one: about the last ten count.
MEMORY = 0.9
# Rollouts' worth of evidence, at the variance of an even success rate, for s = 1 and c = 0: few labels change little.
RIDGE = 16 * 0.25
# Strengths that are tried, as factors on alpha + beta.
FACTORS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 1.7, 3.0)
# Success rates are kept this far from 0 and 1, where a baseline would be certain.
EDGE = 1e-3


class Calibration:
    """The regression and the losses of each strength, over the latest steps."""

    def __init__(self) -> None:
        """Begin without evidence: beliefs stay as they are."""
        # sums over rollouts: 1, m, r, m^2, m r
        self._sums = np.zeros(5)
        # squared errors of the baselines with each of FACTORS
        self._losses = np.zeros(len(FACTORS))

    @property
    def slope(self) -> float:
        """s: how much of a difference between two beliefs their rewards bear out, from 0 to 1."""
        return self._line()[0]

    @property
    def factor(self) -> float:
        """w: the strength that beliefs deserve, over their own."""
        best = self._losses.min()
        # groups of one have the same baseline, whatever its strength: their losses differ by rounding
        near = [i for i, loss in enumerate(self._losses) if loss <= best * (1 + 1e-9)]
        # of equals the one that changes least
        return FACTORS[min(near, key=lambda i: abs(np.log(FACTORS[i])))]

    def apply(self, alpha: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the corrected beliefs.

        Args:
            alpha: (M,) positive.
            beta: (M,) positive.

        Returns:
            (alpha (M,), beta (M,)), positive.
        """
        return self._scaled(alpha, beta, self.factor)

    def add(self, alpha: np.ndarray, beta: np.ndarray, total: np.ndarray, squares: np.ndarray, n: np.ndarray) -> None:
        """Add the labels of one step.

        Args:
            alpha: (M,) of the uncorrected beliefs before the step.
            beta: (M,) of the same.
            total: (M,) sums of the rewards of each prompt, each in [0, 1].
            squares: (M,) sums of their squares.
            n: (M,) their numbers; prompts without any do not count.
        """
        seen = n > 0
        if not seen.any():
            return
        alpha, beta, total, squares, n = (x[seen].astype(np.float64) for x in (alpha, beta, total, squares, n))
        # judged with the line of the steps before, as it was used
        errors = [_error(*self._scaled(alpha, beta, factor), total, squares, n) for factor in FACTORS]
        self._losses = MEMORY * self._losses + errors
        m = alpha / (alpha + beta)
        self._sums = MEMORY * self._sums + [n.sum(), n @ m, total.sum(), n @ m**2, total @ m]

    def to_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"sums": self._sums.tolist(), "losses": self._losses.tolist()}

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `to_dict` returned."""
        self._sums = np.array(state["sums"], dtype=np.float64)
        losses = np.array(state["losses"], dtype=np.float64)
        self._losses = losses if len(losses) == len(FACTORS) else np.zeros(len(FACTORS))

    def _line(self) -> tuple[float, float, float]:
        """Return (s, mean belief, mean reward): r = mean reward + s (m - mean belief)."""
        count, sum_m, sum_r, sum_mm, sum_mr = self._sums.tolist()
        if not count:
            return 1.0, 0.0, 0.0
        mean_m, mean_r = sum_m / count, sum_r / count
        spread, common = sum_mm - count * mean_m**2, sum_mr - count * mean_m * mean_r
        slope = (common + RIDGE) / (spread + RIDGE)
        shift = (mean_r - mean_m) * count / (count + RIDGE / 0.25)
        return min(1.0, max(0.0, slope)), mean_m, mean_m + shift

    def _scaled(self, alpha: np.ndarray, beta: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
        slope, mean_m, mean_r = self._line()
        k = alpha + beta
        m = np.clip(mean_r + slope * (alpha / k - mean_m), EDGE, 1 - EDGE) if self._sums[0] else alpha / k
        return factor * k * m, factor * k * (1 - m)


def _error(alpha: np.ndarray, beta: np.ndarray, total: np.ndarray, squares: np.ndarray, n: np.ndarray) -> float:
    """Return the sum over rollouts of (r_j - (a + S - r_j) / (k + n - 1))^2, the squared error of their baselines."""
    k = alpha + beta
    # The error of rollout j is ((k + n) (r_j - mean) + k mean - alpha) / (k + n - 1): no term of it cancels, also where k is
    # so small that the baselines of a single rollout would.
    mean = total / n
    spread = np.maximum(squares - total * mean, 0.0)
    return float((((k + n) ** 2 * spread + n * (k * mean - alpha) ** 2) / (k + (n - 1)) ** 2).sum())
