"""What one more rollout of a prompt is worth NOW: the online plan's marginals, one number at a time.

A marginal holds each prompt's belief Beta(a, b), which this step's labels update, and n, the rollouts of the prompt that are
dispatched or promised: what is in flight counts as drawn. `key` is the worth of rollout n + 1. All state is in Python
lists, because a step asks for one number per event and numpy's overhead is ten times the arithmetic.

expected_gain   E[gain(n)] of the value under the belief as it is now: with no labels it is the static plan's.
stop_at_mixed   a mixed group is worth nothing more; an all-fail one with j in flight E[p^2 q^(2+j)], an all-pass one
                E[p^(1+j) q^3]: the chance that this rollout is the one that mixes the group, times p q^2.
hybrid          stop_at_mixed while a group is not mixed, expected_gain once it is.
target_size     stop_at_mixed while a group is not mixed; once it is, each rollout up to the target size T is worth
                E[p q^2] / T, its share of a full group, and none beyond.
The last three are about the paper's p q^2 and about binary labels; they refuse others.
"""

from __future__ import annotations

from math import exp, lgamma
from typing import Protocol

import numpy as np
from scipy.special import betaln

from kray.plan_modes import MARGINALS
from kray.planner.quadrature import MOST_ROLLOUTS, NodeValue, nodes
from kray.planner.values import BetaValue, Value


class Marginal(Protocol):
    """The worth of each prompt's next rollout, given all labels and promises so far."""

    binary: bool  # whether labels other than 0 and 1 are refused

    def key(self, row: int) -> float: ...

    def hold(self, row: int, rollouts: int) -> None: ...

    def label(self, row: int, passed: float, failed: float) -> None: ...

    def value(self) -> Value | None: ...


def rising(x: float, k: float) -> float:
    """log of x (x + 1) ... (x + k - 1)."""
    return lgamma(x + k) - lgamma(x)


class ExpectedGain:
    """E[gain(n)] of BetaValue, kept by its two terms (values.py).

    Each event multiplies them by ratios of small factors, so that no gamma function is called: a draw by
    (a+n+1)/(a+b+n+4) and (b+n+2)/(a+b+n+4), a label by the ratios of rising factorials of its shape.
    """

    binary = False

    def __init__(self, alpha: np.ndarray, beta: np.ndarray, held: np.ndarray):
        passed, failed = BetaValue(alpha, beta).terms_at(np.arange(len(held)), held)
        self.a, self.b, self.n = alpha.tolist(), beta.tolist(), held.tolist()
        self._first_failure, self._first_success = passed.tolist(), failed.tolist()

    def key(self, row: int) -> float:
        return self._first_failure[row] + self._first_success[row]

    def hold(self, row: int, rollouts: int) -> None:
        a, b, n = self.a[row], self.b[row], self.n[row]
        self.n[row] = n + rollouts
        if rollouts != 1:
            return self._recompute(row)
        below = a + b + n + 4
        self._first_failure[row] *= (a + n + 1) / below
        self._first_success[row] *= (b + n + 2) / below

    def label(self, row: int, passed: float, failed: float) -> None:
        a, b, n = self.a[row], self.b[row], self.n[row]
        self.a[row], self.b[row] = a + passed, b + failed
        s = a + b
        if passed == 1 and not failed:
            ratio = s / ((s + n + 4) * a)
            self._first_failure[row] *= (a + n + 1) * ratio
            self._first_success[row] *= (a + 2) * ratio
        elif failed == 1 and not passed:
            ratio = s / ((s + n + 4) * b)
            self._first_failure[row] *= (b + 3) * ratio
            self._first_success[row] *= (b + n + 2) * ratio
        else:
            self._recompute(row)

    def value(self) -> Value | None:
        return BetaValue(self.a, self.b)

    def _recompute(self, row: int) -> None:
        a, b, n = self.a[row], self.b[row], self.n[row]
        below = rising(a + b, n + 4)
        self._first_failure[row] = exp(rising(a, n + 1) + rising(b, 3) - below)
        self._first_success[row] = exp(rising(a, 2) + rising(b, n + 2) - below)


class UntilMixed(ExpectedGain):
    """stop_at_mixed, hybrid and target_size: (g) of the docstring above until both labels have been seen."""

    binary = True

    def __init__(self, alpha: np.ndarray, beta: np.ndarray, held: np.ndarray, after: str, target_size: int = 8):
        super().__init__(alpha, beta, held)
        self.after, self.target = after, target_size
        self._passed, self._failed = [0] * len(held), [0] * len(held)

    def key(self, row: int) -> float:
        passed, failed = self._passed[row], self._failed[row]
        if not passed and not failed:
            return self._first_failure[row] + self._first_success[row]
        a, b = self.a[row], self.b[row]
        if passed and failed:
            if self.after == "hybrid":
                return self._first_failure[row] + self._first_success[row]
            if self.after == "target_size" and self.n[row] < self.target:
                s = a + b
                return a * b * (b + 1) / (s * (s + 1) * (s + 2) * self.target)
            return 0.0
        flying = self.n[row] - passed - failed
        below = rising(a + b, 4 + flying)
        if failed:
            return exp(rising(a, 2) + rising(b, 2 + flying) - below)
        return exp(rising(a, 1 + flying) + rising(b, 3) - below)

    def label(self, row: int, passed: float, failed: float) -> None:
        self._passed[row] += int(passed)
        self._failed[row] += int(failed)
        super().label(row, passed, failed)

    def value(self) -> Value | None:
        return None


class NodeGain:
    """E[gain(n)] of a value that is known at nodes (mixtures.py): each prompt's mass there, reweighted by its labels."""

    binary = False

    def __init__(self, value: NodeValue, held: np.ndarray):
        self._value, self.n = value, held.tolist()
        self.a, self.b = value.alpha.tolist(), value.beta.tolist()
        self._p, self._q = nodes(value.nodes)
        self._mass: list[np.ndarray | None] = [None] * len(held)  # made when first asked for: most prompts never are
        self._steps = value.steps(int(held.max(initial=0)) + 64)

    def key(self, row: int) -> float:
        n = self.n[row]
        if n >= MOST_ROLLOUTS:
            return 0.0
        if n >= len(self._steps):
            self._steps = self._value.steps(2 * n)
        mass = self._mass[row]
        if mass is None:
            mass = self._mass[row] = self._value.weights(np.array([row]))[0]
        return float(mass @ self._steps[n])

    def hold(self, row: int, rollouts: int) -> None:
        self.n[row] += rollouts

    def label(self, row: int, passed: float, failed: float) -> None:
        a, b = self.a[row], self.b[row]
        mass = self._mass[row]
        if mass is None:
            mass = self._value.weights(np.array([row]))[0]
        if passed == 1 and not failed:
            self._mass[row] = mass * (self._p * ((a + b) / a))
        elif failed == 1 and not passed:
            self._mass[row] = mass * (self._q * ((a + b) / b))
        else:
            scale = np.exp(betaln(a, b) - betaln(a + passed, b + failed))
            self._mass[row] = mass * (self._p**passed * self._q**failed * scale)
        self.a[row], self.b[row] = a + passed, b + failed

    def value(self) -> Value | None:
        return None


def make_marginal(name: str, value: Value, held: np.ndarray, target_size: int) -> Marginal:
    """The marginal of this name for prompts whose beliefs are the value's and whose promised rollouts are held (M,)."""
    if isinstance(value, NodeValue):
        if name != "expected_gain":
            raise ValueError(f"plan.marginal={name} is about the paper's p (1 - p)^2: it needs plan.value=paper")
        return NodeGain(value, held)
    assert isinstance(value, BetaValue)
    if name == "expected_gain":
        return ExpectedGain(value.alpha, value.beta, held)
    if name in MARGINALS:
        return UntilMixed(value.alpha, value.beta, held, name, target_size)
    raise ValueError(f"plan.marginal={name} is not one of {', '.join(MARGINALS)}")
