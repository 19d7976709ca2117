"""Marginal gain of one more rollout of a prompt, given the labels so far: one number at a time, for the online plan.

A marginal holds each prompt's belief Beta(a, b), which the labels of this step update, and n, the rollouts allocated to the
prompt: those in flight count as drawn. `next_gain` is the gain of rollout n + 1. All state is in Python lists, because a step
needs one number per event and numpy's overhead is ten times the arithmetic.

expected_gain   E[gain(n)] of the value under the current belief; without labels it is the static plan's.
stop_at_mixed   0 for a mixed group; for an all-fail group with j in flight E[p^2 q^(2+j)], for an all-pass one
                E[p^(1+j) q^3]: the probability that this rollout is the one that mixes the group, times p q^2.
hybrid          stop_at_mixed while a group is not mixed, expected_gain once it is.
target_size     stop_at_mixed while a group is not mixed; once it is, E[p q^2] / T for each rollout up to the target size T,
                its share of a full group, and 0 beyond.
The last three are defined for the paper's p q^2 (arXiv 2509.25849) and for binary labels; they reject others.
"""

from __future__ import annotations

from math import exp, lgamma
from typing import Protocol

import numpy as np
from scipy.special import betaln

from kray.plan_modes import MARGINALS
from kray.planner.baseline_value import BaselineValue, expected_gain_of, first_blocks, saturation, saturation_gain
from kray.planner.quadrature import MOST_ROLLOUTS, NodeValue, nodes
from kray.planner.values import BetaValue, Value


class Marginal(Protocol):
    """Gain of each prompt's next rollout, given all labels and allocations so far."""

    def next_gain(self, row: int) -> float:
        """Return the gain of one more rollout of the prompt."""
        ...

    def allocate(self, row: int, rollouts: int) -> None:
        """Count so many more rollouts of the prompt as drawn."""
        ...

    def observe(self, row: int, passed: float, failed: float) -> None:
        """Update the prompt's belief by labels."""
        ...

    def value(self) -> Value | None:
        """Return the value whose gains these are under the current beliefs; None where there is none in closed form."""
        ...


def log_rising(x: float, k: float) -> float:
    """Return log of x (x + 1) ... (x + k - 1)."""
    return lgamma(x + k) - lgamma(x)


class ExpectedGain:
    """E[gain(n)] of BetaValue, kept as its two terms (kray/planner/values.py).

    Each event multiplies the terms by ratios of small factors, so that no gamma function is called: an allocated rollout by
    (a+n+1)/(a+b+n+4) and (b+n+2)/(a+b+n+4), a label by the ratios of rising factorials of the shape that it raises.
    """

    def __init__(self, alpha: np.ndarray, beta: np.ndarray, held: np.ndarray):
        """Take the beliefs alpha (M,), beta (M,) and the rollouts already allocated, held (M,) int."""
        passed, failed = BetaValue(alpha, beta).terms_at(np.arange(len(held)), held)
        self.a, self.b, self.n = alpha.tolist(), beta.tolist(), held.tolist()
        self._first_failure, self._first_success = passed.tolist(), failed.tolist()

    def next_gain(self, row: int) -> float:
        """Return the gain of one more rollout of the prompt."""
        return self._first_failure[row] + self._first_success[row]

    def allocate(self, row: int, rollouts: int) -> None:
        """Count so many more rollouts of the prompt as drawn."""
        a, b, n = self.a[row], self.b[row], self.n[row]
        self.n[row] = n + rollouts
        if rollouts != 1:
            return self._recompute(row)
        below = a + b + n + 4
        self._first_failure[row] *= (a + n + 1) / below
        self._first_success[row] *= (b + n + 2) / below

    def observe(self, row: int, passed: float, failed: float) -> None:
        """Update the prompt's belief by labels."""
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
        """Return BetaValue at the current beliefs."""
        return BetaValue(self.a, self.b)

    def _recompute(self, row: int) -> None:
        a, b, n = self.a[row], self.b[row], self.n[row]
        below = log_rising(a + b, n + 4)
        self._first_failure[row] = exp(log_rising(a, n + 1) + log_rising(b, 3) - below)
        self._first_success[row] = exp(log_rising(a, 2) + log_rising(b, n + 2) - below)


class UntilMixed(ExpectedGain):
    """stop_at_mixed, hybrid and target_size, which agree until both labels have been seen."""

    def __init__(self, alpha: np.ndarray, beta: np.ndarray, held: np.ndarray, after: str, target_size: int = 8):
        """Take the beliefs and the rule for mixed groups.

        Args:
            alpha: (M,) of the beliefs.
            beta: (M,) of the beliefs.
            held: (M,) int rollouts already allocated.
            after: name of the marginal.
            target_size: T, for target_size.
        """
        super().__init__(alpha, beta, held)
        self.after, self.target = after, target_size
        self._passed, self._failed = [0] * len(held), [0] * len(held)

    def next_gain(self, row: int) -> float:
        """Return the gain of one more rollout of the prompt."""
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
        in_flight = self.n[row] - passed - failed
        below = log_rising(a + b, 4 + in_flight)
        if failed:
            return exp(log_rising(a, 2) + log_rising(b, 2 + in_flight) - below)
        return exp(log_rising(a, 1 + in_flight) + log_rising(b, 3) - below)

    def observe(self, row: int, passed: float, failed: float) -> None:
        """Update the prompt's belief by labels."""
        self._passed[row] += int(passed)
        self._failed[row] += int(failed)
        super().observe(row, passed, failed)

    def value(self) -> Value | None:
        """Return None: the solver does not know these gains."""
        return None


class NodeGain:
    """E[gain(n)] of a value known at nodes (kray/planner/quadrature.py): each prompt's mass there, reweighted by its labels."""

    def __init__(self, value: NodeValue, held: np.ndarray):
        """Take the value of M prompts and the rollouts already allocated, held (M,) int."""
        self._value, self.n = value, held.tolist()
        self.a, self.b = value.alpha.tolist(), value.beta.tolist()
        self._p, self._q = nodes(value.nodes)
        # made on first use: most prompts never need it
        self._mass: list[np.ndarray | None] = [None] * len(held)
        self._steps = value.steps(int(held.max(initial=0)) + 64)

    def next_gain(self, row: int) -> float:
        """Return the gain of one more rollout of the prompt."""
        n = self.n[row]
        if n >= MOST_ROLLOUTS:
            return 0.0
        if n >= len(self._steps):
            self._steps = self._value.steps(2 * n)
        mass = self._mass[row]
        if mass is None:
            mass = self._mass[row] = self._value.weights(np.array([row]))[0]
        return float(mass @ self._steps[n])

    def allocate(self, row: int, rollouts: int) -> None:
        """Count so many more rollouts of the prompt as drawn."""
        self.n[row] += rollouts

    def observe(self, row: int, passed: float, failed: float) -> None:
        """Update the prompt's belief by labels."""
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
        """Return None: the solver does not know these gains."""
        return None


class BaselineGain:
    """Gain of BaselineValue: E[g(p)] under the belief with this step's labels, times the saturation's gain.

    The baseline's strength k stays that of the belief before the step: the group's own labels are already in n_eff.
    """

    def __init__(self, value: BaselineValue, held: np.ndarray):
        """Take the value of M prompts and the rollouts already allocated, held (M,) int."""
        self._start, self._tau, self.n = value, value.tau, held.tolist()
        self.a, self.b, self._k = value.alpha.tolist(), value.beta.tolist(), value.strength.tolist()
        self._worth = expected_gain_of(value.gain_kind, value.alpha, value.beta).tolist()
        self._block = first_blocks(value.strength, value.tau).tolist()

    def next_gain(self, row: int) -> float:
        """Return the gain of one more rollout of the prompt."""
        k, n, block = self._k[row], self.n[row], self._block[row]
        slope = saturation(k, block, self._tau) / block
        return float(self._worth[row] * (slope if n < block else min(slope, saturation_gain(k, n, self._tau))))

    def allocate(self, row: int, rollouts: int) -> None:
        """Count so many more rollouts of the prompt as drawn."""
        self.n[row] += rollouts

    def observe(self, row: int, passed: float, failed: float) -> None:
        """Update the prompt's belief by labels."""
        self.a[row] += passed
        self.b[row] += failed
        shape = np.array([self.a[row]]), np.array([self.b[row]])
        self._worth[row] = float(expected_gain_of(self._start.gain_kind, *shape)[0])

    def value(self) -> Value | None:
        """Return the value at the current beliefs."""
        return self._start.updated(self.a, self.b)


def make_marginal(name: str, value: Value, held: np.ndarray, target_size: int) -> Marginal:
    """Make a marginal.

    Args:
        name: one of MARGINALS.
        value: of the M prompts, at their beliefs.
        held: (M,) int rollouts already allocated.
        target_size: plan.target_size.

    Raises:
        ValueError: the name is unknown, or the marginal is not defined for this value.
    """
    if isinstance(value, NodeValue | BaselineValue):
        if name != "expected_gain":
            raise ValueError(f"plan.marginal={name} is about the paper's p (1 - p)^2: it needs plan.value=paper")
        return NodeGain(value, held) if isinstance(value, NodeValue) else BaselineGain(value, held)
    assert isinstance(value, BetaValue)
    if name == "expected_gain":
        return ExpectedGain(value.alpha, value.beta, held)
    if name in MARGINALS:
        return UntilMixed(value.alpha, value.beta, held, name, target_size)
    raise ValueError(f"plan.marginal={name} is not one of {', '.join(MARGINALS)}")
