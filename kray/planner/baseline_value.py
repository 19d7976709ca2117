"""Value of rollouts where the baseline of the advantage is the belief (plan.value baseline): one rollout alone has a value.

A rollout's baseline is the mean of the prompt's belief Beta(alpha, beta), k = alpha + beta, updated with the other n - 1
rewards of its group. Then the estimate of the gradient has the variance (p q / n) (1 + 1 / (k + n - 1)), that of

    n_eff(n) = n (k + n - 1) / (k + n) = n - 1 + k / (k + n)

rollouts with the exact success rate as baseline: the first one counts k / (k + 1), and later ones nearly 1.

Why n_eff / (n_eff + tau): let the mean over n_eff rollouts, the estimate of a prompt's gradient, have mean mu and variance
sigma^2 / n_eff. A step of length eta along it gains eta |mu|^2 - eta^2 / 2 (|mu|^2 + sigma^2 / n_eff) in units in which the
curvature is 1. At the best eta that is |mu|^2 / 2 times n_eff / (n_eff + tau) with

    tau = sigma^2 / |mu|^2,

the variance of a single rollout's gradient over the squared norm of the prompt's mean gradient. Measured gradients give it:
with g and h the gradients of two disjoint halves of a prompt's n rollouts, |mu|^2 is the mean of g h, and sigma^2 that of
n / 4 |g - h|^2. Labels alone do not, since they say nothing about the directions of the rollouts' gradients. Where the number
of prompts is free and all have the same n, V(n) / n is largest near n = 1 - k + sqrt(tau): tau also decides between more
prompts and larger groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kray.planner.values import checked_shapes, log_rising_of, rollout_counts


class BaselineValue:
    """The concave envelope, from n = 0, of V(n) = E[g(p)] n_eff(n) / (n_eff(n) + tau) under Beta(alpha, beta).

    g(p) is p q^2 (`paper`), sqrt(p) q (`sqrt`) or 1 (`flat`), q = 1 - p.

    n_eff is convex in n, so V is not concave where k (k + 1) < tau: its gains rise, and then fall for good. In the envelope the
    first b rollouts count V(b) / b each, b = argmax V(n) / n, and later ones their own gain. Since n / V(n) is, up to a factor
    and a constant, n + tau / (k + n - 1), b is the first n >= 1 with (k + n - 1) (k + n) >= tau.

    Attributes:
        alpha: (M,) of the beliefs.
        beta: (M,) of the beliefs.
        gain_kind: one of plan_modes.GAINS.
        tau: see the module.
        strength: (M,) k.
    """

    smallest_group = 1

    def __init__(
        self,
        alpha: ArrayLike,
        beta: ArrayLike,
        gain: str = "paper",
        tau: float = 1.0,
        strength: np.ndarray | None = None,
    ):
        """Take the beliefs.

        Args:
            alpha: (M,) positive and finite.
            beta: (M,) positive and finite.
            gain: one of plan_modes.GAINS.
            tau: >= 0.
            strength: (M,) k of the baseline, where it is not alpha + beta: in the middle of a step alpha and beta count labels
                of the group itself, and the baseline of its rollouts does not.

        Raises:
            ValueError: an argument is out of range.
        """
        self.alpha, self.beta = checked_shapes(alpha, beta)
        if not 0 <= tau < 1e300:
            raise ValueError(f"tau must be finite and not negative; got {tau}")
        self.gain_kind, self.tau = gain, float(tau)
        self.strength = self.alpha + self.beta if strength is None else strength
        self._worth = expected_gain_of(gain, self.alpha, self.beta)
        self._block = first_blocks(self.strength, self.tau)
        self._slope = self._worth * (saturation(self.strength, self._block, self.tau) / self._block)

    def __len__(self) -> int:
        return len(self.alpha)

    def total(self, n: ArrayLike) -> np.ndarray:
        """Return the value of n (M,) int >= 0 rollouts of each prompt, (M,) float64; ValueError on another n."""
        counts = rollout_counts(n, len(self))
        beyond = np.maximum(counts, self._block)
        return np.where(
            counts <= self._block, counts * self._slope, self._worth * saturation(self.strength, beyond, self.tau)
        )

    def gain(self, n: ArrayLike) -> np.ndarray:
        """Return total(n + 1) - total(n), (M,) float64, for n (M,) int >= 0; ValueError on another n."""
        return self.gain_at(np.arange(len(self)), rollout_counts(n, len(self)))

    def gain_at(self, rows: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the gain of one more rollout after n[k] of prompt rows[k], (K,) float64; both (K,) int, not checked."""
        slope, block = self._slope[rows], self._block[rows]
        own = self._worth[rows] * saturation_gain(self.strength[rows], np.maximum(n, block), self.tau)
        # the minimum only absorbs rounding
        return np.where(n < block, slope, np.minimum(own, slope))

    def part(self, rows: np.ndarray) -> BaselineValue:
        """Return the value of the prompts `rows` (K,) alone."""
        strength = self.strength[rows]
        return BaselineValue(self.alpha[rows], self.beta[rows], self.gain_kind, self.tau, strength)

    def updated(self, alpha: ArrayLike, beta: ArrayLike) -> BaselineValue:
        """Return the value at beliefs that hold labels of this step as well, with the baseline's strength as it was."""
        return BaselineValue(alpha, beta, self.gain_kind, self.tau, self.strength)


def expected_gain_of(kind: str, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Return E[g(p)] under Beta(alpha, beta), (M,).

    paper: E[p q^2] = a b (b + 1) / (s (s + 1) (s + 2)), s = a + b. sqrt: E[sqrt(p) q] = (a)_(1/2) b / (s)_(3/2), with
    (x)_c = Gamma(x + c) / Gamma(x). flat: 1.

    Raises:
        ValueError: the kind is unknown.
    """
    total = alpha + beta
    if kind == "paper":
        return (alpha / total) * (beta / (total + 1)) * ((beta + 1) / (total + 2))
    if kind == "sqrt":
        # (s)_(3/2) = s (s + 1)_(1/2)
        half, below = np.full(len(alpha), 0.5), total + 1
        return (beta / total) * np.exp(log_rising_of(alpha, half) - log_rising_of(below, half))
    if kind == "flat":
        return np.ones(len(alpha))
    raise ValueError(f"plan.gain={kind} is not one of paper, sqrt, flat")


def first_blocks(strength: np.ndarray, tau: float) -> np.ndarray:
    """Return b, the first n >= 1 with (k + n - 1) (k + n) >= tau, for k = strength (M,); (M,) int64."""
    root = (1 + np.sqrt(1 + 4 * tau)) / 2
    return np.maximum(np.ceil(root - strength), 1).astype(np.int64)


def saturation(strength: Any, n: Any, tau: float) -> Any:
    """Return n_eff / (n_eff + tau) of n >= 1 rollouts, k = strength > 0; numbers or arrays."""
    known = n * (strength + (n - 1))
    return known / (known + tau * (strength + n))


def saturation_gain(strength: Any, n: Any, tau: float) -> Any:
    """Return saturation(n + 1) - saturation(n) for n >= 1, without a difference of close numbers; numbers or arrays."""
    below = strength + n
    now, then = n * (strength + (n - 1)) / below, (n + 1) * below / (below + 1)
    # n_eff(n + 1) - n_eff(n) = 1 - k / ((k + n) (k + n + 1))
    step = (strength * (below + n) + n * (n + 1)) / (below * (below + 1))
    return tau * step / ((then + tau) * (now + tau))
