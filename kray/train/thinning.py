"""Thinning: a step is learned from by a part of its rollouts, drawn so that the gradient keeps its expectation."""

from __future__ import annotations

import numpy as np


def inclusion_probabilities(size_R: np.ndarray, share: float) -> np.ndarray:
    """Return min(1, size / c) with c such that the probabilities sum to share * R.

    Among all ways to keep so many rows on average, probabilities in proportion to the size of a row's gradient have the least
    variance.

    Args:
        size_R: (R,) positive estimates of the size of each row's gradient.
        share: In (0, 1]: rows that are kept on average, over R.

    Returns:
        (R,) float64 in (0, 1].
    """
    rows = len(size_R)
    if rows == 0:
        return np.zeros(0)
    descending = np.sort(size_R)[::-1]
    # With the k largest rows kept for certain, c makes the others add up to the rest.
    rest = np.cumsum(descending[::-1])[::-1]
    wanted = share * rows - np.arange(rows)
    scale = np.divide(rest, wanted, out=np.full(rows, np.inf), where=wanted > 0)
    # The first k whose largest remaining row has a probability of at most 1.
    k = int(np.argmax(descending <= scale))
    return np.minimum(1.0, size_R / scale[k])


def draw(probability_R: np.ndarray, seed: int) -> np.ndarray:
    """Draw rows by systematic sampling: each with its probability, and their number within 1 of its expectation.

    Args:
        probability_R: (R,) in [0, 1].
        seed: Equal seeds give equal draws.

    Returns:
        (R,) bool.
    """
    offset = np.random.default_rng(seed).random()
    # Rounding must not let the sum of ones cross a whole number twice or never.
    total = np.round(np.cumsum(probability_R), 9) + offset
    crossed = np.floor(total)
    return crossed > np.concatenate([[np.floor(offset)], crossed[:-1]])
