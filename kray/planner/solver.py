"""The knapsack: assigns rollouts to prompts so that their total value is largest.

Guarantees, asserted before every return: lower <= n <= upper; sum(n) == budget for unit costs; sum(cost * n) <= budget
otherwise. Equal inputs give equal plans.

The problem is separable and each prompt's gains fall with n (kray/planner/values.py), so taking the largest marginal gains is
optimal and no dynamic programme is needed. It suffices to find the threshold, the gain of the last rollout that the budget
buys: each prompt takes the gains above it, and equal gains at the threshold go to the prompt with the fewest rollouts first,
then to the first in order. Gains that are all zero are such a tie, so rollouts that have no value are spread evenly.

The candidates, at most M * (upper - lower) gains, are sorted at once when they are few. When they are many they are first
narrowed to a bracket around the threshold, by pivots from a sample and a binary search in every prompt's gains at once. Both
methods look at the same gains and end at the same threshold, hence at the same plan.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from kray.planner.knapsack_problem import check_problem
from kray.planner.values import Value

# Candidate gains that are sorted at once: about 10 ms and 10 MB.
TABLE_LIMIT = 300_000

# Gains of a prompt that are looked at, at most, to narrow its candidates before they are sorted.
PROBES = 17

# Prompts that compete for the rest of a budget in cost units that is too small for the next best rollout.
POLISH_PROMPTS = 10_000

# (rows (K,), n (K,)) -> gain per unit of cost (K,)
Marginal = Callable[[np.ndarray, np.ndarray], np.ndarray]


def solve(
    value: Value,
    budget: float,
    lower: ArrayLike = 2,
    upper: ArrayLike = 128,
    cost: ArrayLike | None = None,
    *,
    table_limit: int = TABLE_LIMIT,
) -> np.ndarray:
    """Return the rollouts per prompt that maximise sum_i value_i(n_i).

    Exact for unit costs where lower >= 1, and for lower = 0 where one rollout alone has a value. Where it has none (the value's
    `smallest_group` is 2), the first two rollouts of a prompt with lower = 0 are bought together (the concave envelope), and
    the plan is within one such block of the optimum. With costs it is within one increment of it (the greedy solution of the
    relaxed problem).

    Args:
        value: of the M prompts.
        budget: in rollouts, an integer that is spent to the last one; with `cost` an upper limit in the unit of `cost`.
        lower: least rollouts of a prompt, scalar or (M,) int.
        upper: most rollouts of a prompt, scalar or (M,) int.
        cost: (M,) positive price of one rollout of each prompt. Gains are then ranked by gain / cost, and rollouts that add
            nothing are not bought.
        table_limit: candidates above which the threshold is searched instead of sorted for; it never changes the plan.

    Returns:
        (M,) int64.

    Raises:
        ValueError: bounds that the budget cannot meet, wrong shapes, NaN, negative or fractional counts; the message names
            the argument.
    """
    amount, low, high, price = check_problem(len(value), budget, lower, upper, cost)
    if len(value) == 0:
        return np.zeros(0, dtype=np.int64)
    weight = np.ones_like(low) if price is None else price
    left = amount - weight @ low
    # no prompt can get more than the whole rest
    high = low + np.minimum(high - low, left // weight).astype(np.int64)
    block = value.smallest_group
    # prompts whose first rollouts are bought together or not at all
    skippable = (low == 0) & (high >= block) & (block > 1)
    marginal = _marginal(value, skippable, price)
    top = high if price is None else _cut(marginal, low, high, 0.0)
    n, tied, left = _threshold(marginal, low, top, weight, left, table_limit)
    if price is not None:
        return _spend(value, n, tied, low, high, price, amount)
    n = _settle_ties(value, n, tied, high, skippable, int(left))
    assert int(n.sum()) == amount
    assert (n >= low).all()
    assert (n <= high).all()
    return n


def spread(n: np.ndarray, upper: np.ndarray, extra: int) -> np.ndarray:
    """Add `extra` rollouts, each to the prompt below its upper bound that has fewest (the first of equals).

    Args:
        n: (M,) int64 rollouts of each prompt.
        upper: (M,) int64 bounds.
        extra: at most sum(upper - n).

    Returns:
        (M,) int64.
    """
    if extra == 0:
        return n.copy()
    # binary search for the highest level to which `extra` lifts every prompt
    low, high = int(n.min()), int(upper.max())
    while low < high:
        level = (low + high + 1) // 2
        if int((np.clip(level, n, np.maximum(n, upper)) - n).sum()) <= extra:
            low = level
        else:
            high = level - 1
    out = np.clip(low, n, np.maximum(n, upper))
    first = np.flatnonzero((out == low) & (out < upper))[: extra - int((out - n).sum())]
    out[first] += 1
    return out


def _marginal(value: Value, skippable: np.ndarray, cost: np.ndarray | None) -> Marginal:
    """Return the gain per unit of cost on the concave envelope, where a skippable prompt's first two rollouts share a gain."""
    any_skippable = bool(skippable.any())

    def marginal(rows: np.ndarray, n: np.ndarray) -> np.ndarray:
        gain = value.gain_at(rows, n)
        if any_skippable:
            block = np.flatnonzero(skippable[rows] & (n < 2))
            one = np.ones_like(block)
            # gain(1) / 2 equals gain(2) for the knapsack's values; the maximum only absorbs its rounding
            gain[block] = np.maximum(value.gain_at(rows[block], one) / 2, value.gain_at(rows[block], one + 1))
        return gain if cost is None else gain / cost[rows]

    return marginal


def _threshold(
    marginal: Marginal, lo: np.ndarray, hi: np.ndarray, weight: np.ndarray, left: float, table_limit: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Split each prompt's candidates lo <= n < hi at the budget's threshold.

    Returns:
        (above (M,), tied (M,), left): candidates before `above` exceed the threshold and are paid for, those from `above` to
        `tied` equal it, and `left` of the budget remains for them.
    """
    turn = 0
    while True:
        width = hi - lo
        if weight @ width <= left:
            return hi, hi, left - weight @ width
        if left < weight.min():
            return lo, lo, left
        if width.sum() > table_limit:
            level = _pivot(marginal, lo, hi, weight, left, turn)
        elif weight.dtype == np.int64:
            return _threshold_of_table(marginal, lo, hi, int(left))
        else:
            level = _level_of_table(marginal, lo, hi, weight, left)
        turn += 1
        above = _cut(marginal, lo, hi, level)
        spent = weight @ (above - lo)
        if spent > left:
            # gains so flat that rounding disorders them are equal for every purpose
            if (above == hi).all():
                return lo, hi, left
            # the threshold is higher
            hi = above
            continue
        tied = _cut(marginal, above, hi, level, inclusive=True, stride=0)
        if weight @ (tied - lo) > left or (tied == lo).all():
            return above, tied, left - spent
        # the threshold is lower
        lo, left = tied, left - weight @ (tied - lo)


def _threshold_of_table(
    marginal: Marginal, lo: np.ndarray, hi: np.ndarray, left: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Do the same for unit costs by selecting from a table of the candidates, which are more than `left`."""
    first, end = _bracket(marginal, lo, hi, left)
    rows, n = _ragged(first, end)
    gains = marginal(rows, n)
    last = len(gains) - 1 - int(left - (first - lo).sum())
    level = np.partition(gains, last)[last]
    above = first + np.bincount(rows[gains > level], minlength=len(lo))
    tied = above + np.bincount(rows[gains == level], minlength=len(lo))
    return above, tied, left - int((above - lo).sum())


def _bracket(marginal: Marginal, lo: np.ndarray, hi: np.ndarray, left: int) -> tuple[np.ndarray, np.ndarray]:
    """Narrow the candidates lo <= n < hi, more than `left`, by the gains at a few n of each prompt.

    Since gains fall, a probed gain bounds those before it from below and those after it from above.

    Returns:
        (first (M,), end (M,)): the threshold and all its ties lie at first <= n < end, and the candidates before `first`, at
        most `left`, exceed it.
    """
    width = hi - lo
    edge = np.unique(np.expm1(np.linspace(0, 1, PROBES) * np.log1p(width.max())).astype(np.int64))[:-1]
    rows = np.flatnonzero(width)
    if len(rows) * len(edge) * 2 > width.sum():
        return lo, hi
    at = np.minimum(edge, width[rows, None] - 1)
    gains = marginal(np.repeat(rows, len(edge)), (lo[rows, None] + at).ravel()).reshape(at.shape)
    order = np.argsort(-gains, axis=None)
    ranked = gains.ravel()[order]
    # candidates from each probe to the next one, and from the one before
    after = np.diff(np.minimum(edge, width[rows, None]), axis=1, append=width[rows, None])
    before = np.diff(at, axis=1, prepend=-1)
    # every candidate above `high` can be paid for; those not below `low` cannot all be
    high = ranked[np.searchsorted(np.cumsum(after.ravel()[order]), left, side="right")]
    reached = np.searchsorted(np.cumsum(before.ravel()[order]), left, side="right")
    low = ranked[reached] if reached < len(ranked) else -np.inf
    first, end = lo.copy(), hi.copy()
    above, kept = (gains > high).sum(axis=1), (gains >= low).sum(axis=1)
    each = np.arange(len(rows))
    first[rows] += np.where(above > 0, at[each, above - 1] + 1, 0)
    end[rows] = np.where(kept < len(edge), lo[rows] + at[each, np.minimum(kept, len(edge) - 1)], hi[rows])
    # gains so flat that rounding disorders them
    if (first > end).any() or not (first - lo).sum() <= left < (end - lo).sum():
        return lo, hi
    return first, end


def _level_of_table(marginal: Marginal, lo: np.ndarray, hi: np.ndarray, weight: np.ndarray, left: float) -> float:
    """Return the first gain, from the highest down, that the budget `left` does not pay for; the candidates exceed it."""
    rows, n = _ragged(lo, hi)
    gains = marginal(rows, n)
    order = np.argsort(-gains, kind="stable")
    at = int(np.searchsorted(np.cumsum(weight[rows[order]]), left, side="right"))
    return float(gains[order[min(at, len(order) - 1)]])


def _pivot(marginal: Marginal, lo: np.ndarray, hi: np.ndarray, weight: np.ndarray, left: float, turn: int) -> float:
    """Return a gain near the threshold, from a sample of candidates, aimed so that the larger side is cut off.

    It is the gain of a candidate, so every pivot settles at least that one (Floyd and Rivest's selection, 1975).
    """
    rows = np.flatnonzero(hi > lo)
    fraction = left / float(weight[rows] @ (hi - lo)[rows])
    rows = rows[:: -(-len(rows) // 2048)]
    width = (hi - lo)[rows, None]
    # finer where n is small: gains fall fast there, and upper may be far away
    edge = np.floor(np.expm1(np.linspace(0, 1, 65) * np.log1p(width))).astype(np.int64)
    edge[:, -1:] = width
    offset = np.minimum((edge[:, :-1] + edge[:, 1:]) // 2, width - 1)
    share = (weight[rows, None] * (edge[:, 1:] - edge[:, :-1])).ravel()
    gains = marginal(np.repeat(rows, 64), (lo[rows, None] + offset).ravel())
    margin = 2 * np.sqrt(fraction * (1 - fraction) / len(rows)) + 1e-6
    aim = (fraction + margin if fraction < 0.5 else fraction - margin) if turn < 8 else 0.5
    order = np.argsort(-gains)
    mass = np.cumsum(share[order])
    at = int(np.searchsorted(mass, np.clip(aim, 0, 1) * mass[-1]))
    return float(gains[order[min(at, len(order) - 1)]])


def _cut(
    marginal: Marginal, lo: np.ndarray, hi: np.ndarray, level: float, inclusive: bool = False, stride: int = 8
) -> np.ndarray:
    """Return the first n in [lo, hi] of each prompt whose gain is not above `level` (when inclusive: is below it), (M,) int64.

    A binary search in all prompts at once. Its first probes are at most `stride`, 2 stride, ... from lo, so that an answer
    near lo is found early however far hi is.
    """
    lo, hi = lo.copy(), hi.copy()
    rows = np.flatnonzero(lo < hi)
    while rows.size:
        low, high = lo[rows], hi[rows]
        middle = np.minimum(low + stride, (low + high) // 2)
        stride = max(1, 2 * stride)
        gain = marginal(rows, middle)
        taken = gain >= level if inclusive else gain > level
        low = np.where(taken, middle + 1, low)
        high = np.where(taken, high, middle)
        lo[rows], hi[rows] = low, high
        rows = rows[low < high]
    return lo


def _settle_ties(
    value: Value, n: np.ndarray, tied: np.ndarray, upper: np.ndarray, skippable: np.ndarray, left: int
) -> np.ndarray:
    """Spend the last `left` rollouts on candidates n <= k < tied, all of the same gain; return (M,) int64."""
    n = n.copy()
    closed = np.flatnonzero(skippable & (n == 0) & (tied >= 2))
    opened = closed[: left // 2]
    n[opened] = 2
    left -= 2 * len(opened)
    # one rollout alone teaches nothing: never open a block with one
    usable = np.where(skippable & (n == 0), n, tied)
    placed = min(left, int((usable - n).sum()))
    n = spread(n, usable, placed)
    left -= placed
    # half a block is over: buy the best rollouts below the threshold
    while left:
        rows = np.flatnonzero(n < upper)
        gain = value.gain_at(rows, n[rows])
        best = rows[np.argmax(gain)]
        if gain.max() <= 0:
            return spread(n, upper, left)
        n[best] += 1
        left -= 1
    return n


def _spend(
    value: Value,
    n: np.ndarray,
    tied: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    cost: np.ndarray,
    budget: float,
) -> np.ndarray:
    """Spend what the threshold left, ties first, then whatever still fits, never over the budget; return (M,) int64."""
    rows, k = _ragged(n, tied)
    together = value.smallest_group > 1
    block = np.where((k == 0) & (upper[rows] >= 2) & together, 2, 1)
    # without the second half of a block
    entry = np.flatnonzero((k != 1) | (lower[rows] > 0) | (not together))
    entry = entry[np.lexsort((rows[entry], k[entry]))]
    paid = entry[np.cumsum(cost[rows[entry]] * block[entry]) <= budget - cost @ n]
    n = n + np.bincount(rows[paid], block[paid], len(n)).astype(np.int64)
    _polish(value, n, upper, cost, budget - float(cost @ n))
    # sums of fractional costs round
    while cost @ n > budget and (n > lower).any():
        rows = np.flatnonzero(n > lower)
        n[rows[np.argmin(value.gain_at(rows, n[rows] - 1) / cost[rows])]] -= 1
    assert cost @ n <= budget
    assert (n >= lower).all()
    assert (n <= upper).all()
    return n


def _polish(value: Value, n: np.ndarray, upper: np.ndarray, cost: np.ndarray, left: float) -> None:
    """Add to n, in place, what `left` pays for although it is too little for the best rollout: best rate first."""
    block = np.where((n == 0) & (upper >= 2) & (value.smallest_group > 1), 2, 1)
    rows = np.flatnonzero((n + block <= upper) & (cost * block <= left))
    rate = value.gain_at(rows, n[rows] + block[rows] - 1) / (cost[rows] * block[rows])
    best = np.argsort(-rate, kind="stable")[:POLISH_PROMPTS]
    best = best[rate[best] > 0]
    queue = list(zip((-rate[best]).tolist(), rows[best].tolist(), block[rows[best]].tolist(), strict=True))
    heapq.heapify(queue)
    while queue:
        _, i, k = heapq.heappop(queue)
        if cost[i] * k > left:
            continue
        n[i] += k
        left -= float(cost[i]) * k
        gain = float(value.gain_at(np.array([i]), n[i : i + 1])[0])
        if n[i] < upper[i] and gain > 0:
            heapq.heappush(queue, (-gain / float(cost[i]), i, 1))


def _ragged(lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs (row, n) with lo <= n < hi, (K,) int64 each, rows in order."""
    width = hi - lo
    rows = np.repeat(np.arange(len(lo)), width)
    n = np.arange(len(rows)) - np.repeat(np.cumsum(width) - width - lo, width)
    return rows, n
