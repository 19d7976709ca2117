"""Value of n rollouts of a prompt: the objective of Knapsack RL (arXiv 2509.25849) and its Bayesian expectation.

A value is separable over M prompts and guarantees what `solve` relies on: V(0) = 0, and V(1) = 0 where its `smallest_group` is
2; gains are never negative and never rise with n from n = smallest_group - 1 on. Gains are sums of positive terms, never
differences of totals, so a gain of 1e-30 is as accurate as one of 0.1. The unit is that of p (1 - p)^2, the paper's InfoGain:
a pure number.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

# Argument from which the Stirling series is exact to the last digit, and log-gamma differences start to cancel.
_STIRLING_FROM = 64.0


class Value(Protocol):
    """Value of rollouts of M prompts, as `solve` needs it.

    Attributes:
        smallest_group: rollouts of a prompt that are worth something together: 2 where the baseline is the mean of the group,
            for which one rollout alone has the advantage 0, else 1.
    """

    smallest_group: int

    def __len__(self) -> int:
        """Return M."""
        ...

    def total(self, n: np.ndarray) -> np.ndarray:
        """Return the value of n (M,) rollouts of each prompt, (M,) float64."""
        ...

    def gain(self, n: np.ndarray) -> np.ndarray:
        """Return total(n + 1) - total(n), (M,) float64."""
        ...

    def gain_at(self, rows: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the gain of one more rollout after n[k] of prompt rows[k].

        Args:
            rows: (K,) int, not checked.
            n: (K,) int, not checked.

        Returns:
            (K,) float64.
        """
        ...


class PointValue:
    """Value of rollouts when the success rates are taken as known.

    Value(N, p) = (1 - p^N - q^N) p q^2 with q = 1 - p (arXiv 2509.25849, definitions of Value and InfoGain).
    """

    smallest_group = 2

    def __init__(self, success_rate: ArrayLike):
        """Take the success rates.

        Args:
            success_rate: (M,) in [0, 1].

        Raises:
            ValueError: not a vector, or a rate is outside [0, 1] or NaN.
        """
        p = _vector("success_rate", success_rate)
        # the comparison is false for NaN
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError(f"success_rate must lie in [0, 1]; got {_first(p, ~((p >= 0) & (p <= 1)))}")
        self.success_rate = p
        q = 1.0 - p
        with np.errstate(divide="ignore"):
            # log 0 is replaced by a number so low that every power vanishes, and 0 times it is still 0
            self._log_p = np.maximum(np.log(p), -1e5)
            self._log_q = np.maximum(np.log1p(-p), -1e5)
        self._info_gain = p * q * q
        self._scale = p * q * self._info_gain

    def __len__(self) -> int:
        return len(self.success_rate)

    def total(self, n: ArrayLike) -> np.ndarray:
        """Return the value of n rollouts of each prompt.

        Args:
            n: (M,) int >= 0.

        Returns:
            (M,) float64.

        Raises:
            ValueError: n has another shape or holds anything else.
        """
        n = rollout_counts(n, len(self))
        log_low = np.minimum(self._log_p, self._log_q)
        log_high = np.maximum(self._log_p, self._log_q)
        mixed = -np.expm1(n * log_high) - np.exp(n * log_low)
        return np.where(n < 2, 0.0, self._info_gain * mixed)

    def gain(self, n: ArrayLike) -> np.ndarray:
        """Return total(n + 1) - total(n), in closed form p q (p^(n-1) + q^(n-1)) p q^2 for n >= 1, and 0 for n = 0.

        Args:
            n: (M,) int >= 0.

        Returns:
            (M,) float64.

        Raises:
            ValueError: n has another shape or holds anything else.
        """
        return self.gain_at(np.arange(len(self)), rollout_counts(n, len(self)))

    def gain_at(self, rows: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the gain of one more rollout after n[k] of prompt rows[k], (K,) float64; both (K,) int, not checked."""
        # exp(k log p) and not p ** k: k log p falls with k exactly, so rounding cannot make a gain rise
        power = np.maximum(n - 1, 0)
        both = np.exp(power * self._log_p[rows]) + np.exp(power * self._log_q[rows])
        return np.where(n < 1, 0.0, self._scale[rows] * both)


class BetaValue:
    """Expectation of PointValue when each success rate is Beta(alpha, beta) distributed.

    With B the beta function, and (x)_k = x (x + 1) ... (x + k - 1):
        E[Value(N)] = [B(a+1, b+2) - B(a+1+N, b+2) - B(a+1, b+2+N)] / B(a, b)
        E[gain(n)]  = [(a)_(n+1) (b)_3 + (a)_2 (b)_(n+2)] / (a+b)_(n+4)                     n >= 1
    A mixture of concave functions is concave, so the same solver stays exact. The relative accuracy is about 1e-12, also
    where alpha + beta is so large that log-gammas cancel.
    """

    smallest_group = 2

    def __init__(self, alpha: ArrayLike, beta: ArrayLike):
        """Take the beliefs.

        Args:
            alpha: (M,) positive and finite.
            beta: (M,) positive and finite.

        Raises:
            ValueError: shapes differ, or a number is not positive and finite.
        """
        self.alpha, self.beta = checked_shapes(alpha, beta)
        a, b = self.alpha, self.beta
        self._sum = a + b
        self._gamma_a, self._gamma_b, self._gamma_sum = gammaln(a), gammaln(b), gammaln(self._sum)
        self._log_a2 = np.log(a) + np.log1p(a)
        self._log_b3 = np.log(b) + np.log1p(b) + np.log(b + 2)

    def __len__(self) -> int:
        return len(self.alpha)

    def total(self, n: ArrayLike) -> np.ndarray:
        """Return the expected value of n rollouts of each prompt.

        Args:
            n: (M,) int >= 0.

        Returns:
            (M,) float64.

        Raises:
            ValueError: n has another shape or holds anything else.
        """
        n = rollout_counts(n, len(self))
        a, b, s = self.alpha, self.beta, self._sum
        # E[p q^2]
        info_gain = (a / s) * (b / (s + 1)) * ((b + 1) / (s + 2))
        # log probabilities under the density proportional to p q^2 Beta(p; a, b)
        below = _log_rising(s + 3, gammaln(s + 3), n)
        all_pass = _log_rising(a + 1, gammaln(a + 1), n) - below
        all_fail = _log_rising(b + 2, gammaln(b + 2), n) - below
        mixed = -np.expm1(np.maximum(all_pass, all_fail)) - np.exp(np.minimum(all_pass, all_fail))
        return np.where(n < 2, 0.0, info_gain * np.maximum(mixed, 0.0))

    def gain(self, n: ArrayLike) -> np.ndarray:
        """Return total(n + 1) - total(n) in closed form; gain(0) = 0.

        Args:
            n: (M,) int >= 0.

        Returns:
            (M,) float64.

        Raises:
            ValueError: n has another shape or holds anything else.
        """
        return self.gain_at(np.arange(len(self)), rollout_counts(n, len(self)))

    def gain_at(self, rows: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the gain of one more rollout after n[k] of prompt rows[k], (K,) float64; both (K,) int, not checked."""
        passed, failed = self.terms_at(rows, n)
        return np.where(n < 1, 0.0, passed + failed)

    def terms_at(self, rows: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the terms (K,) of E[gain(n)]: a first failure after n successes, and a first success after n failures."""
        below = _log_rising(self._sum[rows], self._gamma_sum[rows], n + 4)
        passed = _log_rising(self.alpha[rows], self._gamma_a[rows], n + 1) + self._log_b3[rows]
        failed = _log_rising(self.beta[rows], self._gamma_b[rows], n + 2) + self._log_a2[rows]
        return np.exp(passed - below), np.exp(failed - below)


def checked_shapes(alpha: ArrayLike, beta: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return alpha and beta as (M,) float64; ValueError where shapes differ or a number is not positive and finite."""
    a, b = _vector("alpha", alpha), _vector("beta", beta)
    if a.shape != b.shape:
        raise ValueError(f"beta must have the shape of alpha, {a.shape}; got {b.shape}")
    for name, x in (("alpha", a), ("beta", b)):
        bad = ~((x > 0) & (x < 1e300))
        if bad.any():
            raise ValueError(f"{name} must be positive and finite; got {_first(x, bad)}")
    return a, b


def _log_rising(x: np.ndarray, log_gamma_x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Return log of x (x + 1) ... (x + k - 1); all (K,); log_gamma_x is gammaln(x), which callers have already.

    For large x it is the difference of two Stirling series with the large terms cancelled on paper.
    """
    large = x >= _STIRLING_FROM
    if not large.any():
        return gammaln(x + k) - log_gamma_x
    out = np.empty(x.shape)
    small = ~large
    out[small] = gammaln(x[small] + k[small]) - log_gamma_x[small]
    y, j = x[large], k[large]
    out[large] = (y + j - 0.5) * np.log1p(j / y) - j + j * np.log(y) + (_stirling_tail(y + j) - _stirling_tail(y))
    return out


def log_rising_of(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Return log of Gamma(x + k) / Gamma(x), (K,), for x (K,) > 0 and k (K,) >= 0, without cancellation where x is large."""
    return _log_rising(x, gammaln(x), k)


def _stirling_tail(x: np.ndarray) -> np.ndarray:
    """Return log-gamma(x) less its leading terms; the first term left out is below 1e-18 for x >= 64."""
    r = 1.0 / x
    return r * (1 / 12 - r * r * (1 / 360 - r * r * (1 / 1260 - r * r / 1680)))


def _vector(name: str, x: ArrayLike) -> np.ndarray:
    try:
        out = np.array(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a vector of numbers ({error})") from None
    if out.ndim != 1:
        raise ValueError(f"{name} must have shape (M,); got {out.shape}")
    return out


def rollout_counts(n: ArrayLike, m: int) -> np.ndarray:
    """Check n (m,) int >= 0 and return it as int64; ValueError otherwise."""
    out = np.asarray(n)
    if out.shape != (m,):
        raise ValueError(f"n must have shape ({m},); got {out.shape}")
    if m and not (np.issubdtype(out.dtype, np.integer) and (out >= 0).all()):
        raise ValueError("n must hold integers >= 0")
    return out.astype(np.int64)


def _first(x: np.ndarray, bad: np.ndarray) -> str:
    at = int(np.flatnonzero(bad)[0])
    return f"{x[at]} at position {at}"
