"""Values without a closed form under a Beta belief, as expectations over fixed nodes: GRPO's first-order gain and CoBA-RL's.

Each value is p q times a function f_n(p), so its expectation under Beta(a, b) is, with p = sin^2(t),

    E[V(n)] = integral p q f_n(p) Beta(p; a, b) dp  ~  (pi / K) sum_k p_k^(a + 1/2) q_k^(b + 1/2) f_n(p_k) / B(a, b)

at t_k = (k + 1/2) pi / (2 K): the Gauss-Chebyshev rule, without a pole for any a, b > 0, and accurate while a belief is
wider than the spacing of the nodes (K = 128 up to a + b = 1,600, else 1,024). A sum of concave functions with positive
weights is concave, so `solve` stays exact for the value that the nodes define. The guarantees are those of
kray/planner/values.py.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln, gammaln

from kray.planner.values import BetaValue, rollout_counts

# Largest a + b: a sharper belief is as good as certain, and is widened to this.
SHARPEST = 1e5

# Rollouts of one prompt from which on another one is taken to be worth nothing.
MOST_ROLLOUTS = 4096

# Rollouts up to which every n is computed; beyond, totals are interpolated (which keeps concavity).
EXACT_ROLLOUTS = 256

# Largest cached table of gains, in cells (M * n) of 8 bytes.
_TABLE_CELLS = 4_000_000


@lru_cache(maxsize=4)
def nodes(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return p (k,) and q = 1 - p (k,) at the k nodes of the rule above."""
    t = (np.arange(k) + 0.5) * np.pi / (2 * k)
    return np.sin(t) ** 2, np.cos(t) ** 2


@lru_cache(maxsize=8)
def spread_totals(k: int, most: int) -> np.ndarray:
    """Return E[sqrt(S (n - S))] / n for S ~ Binomial(n, p) at each node, (most + 1, k); 0 for n < 2."""
    p, q = nodes(k)
    at = list(range(2, min(most, EXACT_ROLLOUTS) + 1))
    while at and at[-1] < most:
        at.append(min(most, at[-1] + max(1, at[-1] // 2)))
    exact = np.zeros((len(at), k))
    for i, n in enumerate(at):
        s = np.arange(1, n)
        ways = gammaln(n + 1) - gammaln(s + 1) - gammaln(n - s + 1)
        chance = np.exp(ways + np.outer(np.log(p), s) + np.outer(np.log(q), n - s))
        exact[i] = chance @ np.sqrt(s * (n - s)) / n
    out = np.zeros((most + 1, k))
    for j in range(k) if at else ():
        out[2:, j] = np.interp(np.arange(2, most + 1), at, exact[:, j])
    return out


class NodeValue:
    """Expectation of p q f_n(p) under Beta(alpha, beta); a subclass defines f."""

    smallest_group = 2

    def __init__(self, alpha: ArrayLike, beta: ArrayLike):
        """Take the beliefs.

        Args:
            alpha: (M,) positive and finite.
            beta: (M,) positive and finite.

        Raises:
            ValueError: shapes differ, or a number is not positive and finite.
        """
        checked = BetaValue(alpha, beta)
        shrink = np.maximum(1.0, (checked.alpha + checked.beta) / SHARPEST)
        self.alpha, self.beta = checked.alpha / shrink, checked.beta / shrink
        widest = (self.alpha + self.beta).max(initial=0.0)
        self.nodes = 128 if widest <= 1600 else 1024
        self._most = 0
        self._f = np.zeros((1, self.nodes))
        self._table: np.ndarray | None = None
        self._weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.alpha)

    def totals(self, most: int) -> np.ndarray:
        """Return f_n at each node for n = 0..most, (most + 1, nodes); f_0 = f_1 = 0, and concave in n from n = 1 on."""
        raise NotImplementedError

    def weights(self, rows: np.ndarray) -> np.ndarray:
        """Return p q times each belief's probability mass at the nodes, (K, nodes), for rows (K,)."""
        p, q = nodes(self.nodes)
        a, b = self.alpha[rows, None], self.beta[rows, None]
        return np.exp((a + 0.5) * np.log(p) + (b + 0.5) * np.log(q) - betaln(a, b)) * (np.pi / self.nodes)

    def steps(self, most: int) -> np.ndarray:
        """Return f_{n+1} - f_n at each node for n = 0..most, (>= most + 1, nodes); never negative, never rising from n = 1."""
        most = min(most, MOST_ROLLOUTS)
        if len(self._f) <= most:
            most = min(MOST_ROLLOUTS, max(most, 2 * len(self._f), 130))
            gains = np.maximum(np.diff(self.totals(most + 1), axis=0), 0.0)
            gains[0] = 0.0
            gains[1:] = np.minimum.accumulate(gains[1:], axis=0)
            self._f = gains
        return self._f

    def total(self, n: ArrayLike) -> np.ndarray:
        """Return the expected value of n (M,) int >= 0 rollouts of each prompt, (M,) float64; ValueError on another n."""
        counts = np.minimum(rollout_counts(n, len(self)), MOST_ROLLOUTS)
        sums = np.concatenate([np.zeros((1, self.nodes)), np.cumsum(self.steps(int(counts.max(initial=0))), axis=0)])
        return self._dot(np.arange(len(self)), counts, sums)

    def gain(self, n: ArrayLike) -> np.ndarray:
        """Return total(n + 1) - total(n), (M,) float64, for n (M,) int >= 0; gain(0) = 0; ValueError on another n."""
        return self.gain_at(np.arange(len(self)), rollout_counts(n, len(self)))

    def gain_at(self, rows: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the gain of one more rollout after n[k] of prompt rows[k], (K,) float64; both (K,) int, not checked."""
        if not len(n):
            return np.zeros(0)
        most = int(n.max())
        known = np.where(n < MOST_ROLLOUTS, 1.0, 0.0)
        n = np.minimum(n, MOST_ROLLOUTS - 1)
        steps = self.steps(most)
        if len(self) * len(steps) > _TABLE_CELLS:
            return known * self._dot(rows, n, steps)
        if self._table is None or self._table.shape[1] < len(steps):
            table = self.weights(np.arange(len(self))) @ steps.T
            # rounding must not make a gain rise
            table[:, 1:] = np.minimum.accumulate(table[:, 1:], axis=1)
            self._table = table
        return known * self._table[rows, n]

    def _dot(self, rows: np.ndarray, n: np.ndarray, per_node: np.ndarray) -> np.ndarray:
        out = np.empty(len(rows))
        for at in range(0, len(rows), 8192):
            part = slice(at, at + 8192)
            out[part] = np.einsum("ij,ij->i", self.weights(rows[part]), per_node[n[part]])
        return out


class GrpoValue(NodeValue):
    """First-order gain of std-normalised GRPO when each prompt's loss is a mean over its rollouts.

    V*(N, p) = p q E[sqrt(S (N - S))] / N, S ~ Binomial(N, p): the gain of a step along the expected gradient of the
    group-normalised loss (arXiv 2402.03300), to first order. Its unit is that of p q.
    """

    def totals(self, most: int) -> np.ndarray:
        """Return E[sqrt(S (n - S))] / n at each node for n = 0..most, (most + 1, nodes)."""
        return spread_totals(self.nodes, most)


class CobaValue(NodeValue):
    """CoBA-RL's value, arXiv 2602.03048: (1 - exp(-N p q / tau)) * BetaPDF(p; a_t, kappa - a_t).

    a_t = 1 + (kappa - 2) F, F the failure rate of recent batches, replaced by 1 / (1 + exp(-10 (F - 1/2))) once it is at most
    1/2; kappa = 7 and tau = 3 + 9 min(1, var(p) / 0.1667), as in the authors' code. Departures: the expectation under the
    belief where they take a point; the value of the first rollout, which no plan can save, is left out.
    """

    def __init__(
        self, alpha: ArrayLike, beta: ArrayLike, failure_rate: float = 0.5, tau: float | None = None, kappa: float = 7.0
    ):
        """Take the beliefs and CoBA-RL's parameters.

        Args:
            alpha: (M,) positive and finite.
            beta: (M,) positive and finite.
            failure_rate: F, in [0, 1].
            tau: saturation scale in rollouts; None for that of the authors' code.
            kappa: concentration of the density over success rates.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__(alpha, beta)
        if not 0 <= failure_rate <= 1:
            raise ValueError(f"failure_rate must lie in [0, 1]; got {failure_rate}")
        self.shape, self.kappa = coba_shape(failure_rate, kappa), kappa
        self.tau = coba_tau(self.alpha / (self.alpha + self.beta)) if tau is None else float(tau)

    def totals(self, most: int) -> np.ndarray:
        """Return CoBA-RL's value over p q at each node for n = 0..most, (most + 1, nodes), without the first rollout's."""
        p, q = nodes(self.nodes)
        n = np.arange(most + 1)[:, None]
        steps = np.exp(-n * p * q / self.tau) * -np.expm1(-p * q / self.tau)
        steps *= beta_density(p, self.shape, self.kappa - self.shape) / (p * q)
        steps[0] = 0.0
        return np.concatenate([np.zeros((1, self.nodes)), np.cumsum(steps, axis=0)[:-1]])


def coba_shape(failure_rate: float, kappa: float = 7.0) -> float:
    """Return CoBA-RL's a_t, the success rates that are worth most now: from 1 at failure rate 0 to kappa - 1 at 1."""
    rate = failure_rate if failure_rate > 0.5 else 1 / (1 + np.exp(-10 * (failure_rate - 0.5)))
    return float(1 + (kappa - 2) * rate)


def coba_tau(success_rate: np.ndarray) -> float:
    """Return CoBA-RL's saturation scale in rollouts times p q: 3 for equal success rates (M,), 12 for very different ones."""
    spread = float(np.var(np.clip(success_rate, 0.01, 0.99))) if len(success_rate) else 0.0
    return 3.0 + 9.0 * min(1.0, spread / 0.1667)


def beta_density(p: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Return the density of Beta(alpha, beta) at p in (0, 1), of any shape."""
    return np.exp((alpha - 1) * np.log(p) + (beta - 1) * np.log1p(-p) - betaln(alpha, beta))
