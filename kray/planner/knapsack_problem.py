"""Checks of what the solver is given."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

# Largest count of rollouts: float64 is exact up to here.
_MAX_COUNT = 2**53


def check_problem(
    m: int, budget: float, lower: ArrayLike, upper: ArrayLike, cost: ArrayLike | None
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray | None]:
    """Check what `solve` was given for m prompts.

    Returns:
        (budget, lower (m,) int64, upper (m,) int64, cost (m,) float64 or None). Without cost the budget is an int that the
        bounds can reach exactly; with cost it pays at least for `lower`.
    """
    low, high = _rollouts("lower", lower, m), _rollouts("upper", upper, m)
    if (low > high).any():
        at = int(np.flatnonzero(low > high)[0])
        raise ValueError(f"lower exceeds upper: {low[at]} > {high[at]} at position {at}")
    try:
        amount = float(budget)
    except (TypeError, ValueError):
        raise ValueError(f"budget must be a number; got {budget!r}") from None
    if not math.isfinite(amount) or amount < 0:
        raise ValueError(f"budget must be finite and not negative; got {budget!r}")
    if cost is None:
        if not amount.is_integer() or amount > _MAX_COUNT:
            raise ValueError(f"budget must be a whole number of rollouts; got {budget!r}")
        if low.sum() > amount:
            raise ValueError(f"budget {int(amount)} is less than the sum of lower, {low.sum()}, over {m} prompts")
        if high.sum(dtype=np.float64) < amount:
            raise ValueError(f"budget {int(amount)} is more than the sum of upper, {high.sum()}, over {m} prompts")
        return int(amount), low, high, None
    prices = np.asarray(cost, dtype=np.float64)
    if prices.shape != (m,):
        raise ValueError(f"cost must have shape ({m},); got {prices.shape}")
    if not ((prices > 0) & np.isfinite(prices)).all():
        raise ValueError("cost must be positive and finite")
    if prices @ low > amount:
        raise ValueError(f"budget {amount:g} does not pay for lower, which costs {prices @ low:g}")
    return amount, low, high, prices


def _rollouts(name: str, bound: ArrayLike, m: int) -> np.ndarray:
    """Return a scalar or (m,) bound as (m,) int64."""
    try:
        given = np.asarray(bound, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an integer or a vector of them; got {bound!r}") from None
    if given.shape not in ((), (m,)):
        raise ValueError(f"{name} must be a scalar or have shape ({m},); got {given.shape}")
    if not ((given >= 0) & (given == np.floor(given)) & (given <= _MAX_COUNT)).all():
        raise ValueError(f"{name} must hold integers from 0 to 2**53; got {bound!r}")
    return np.broadcast_to(given.astype(np.int64), (m,)).copy()
