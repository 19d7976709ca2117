"""Columns of numbers, one for each prompt seen: discounting, reading by row, and restoring from a saved state."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# Discounted counts are whole multiples of 1 / GRID, so labels add up exactly, in any order.
GRID = 2.0**20

# Largest count of one prompt: up to here float64 distinguishes multiples of 1 / GRID.
MAX_COUNT = 2.0**32


def discounted(counts: Any, discount: float) -> Any:
    """Return a count, or an array of them, times the discount, as a multiple of 1 / GRID."""
    return np.round(counts * (discount * GRID)) / GRID


def at_rows(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return column[rows], 0 where the row is -1, (M,)."""
    out = np.zeros(len(rows), dtype=column.dtype)
    seen = rows >= 0
    out[seen] = column[rows[seen]]
    return out


def read_counts(name: str, saved: ArrayLike, prompts: int) -> np.ndarray:
    """Return the saved counts of so many prompts, (prompts,) float64; ValueError where they cannot be counts."""
    column = np.asarray(saved, dtype=np.float64)
    if len(column) != prompts:
        raise ValueError(f"beliefs are damaged: {name} has {len(column)} entries for {prompts} prompts")
    if column.ndim != 1 or not ((column >= 0) & (column <= MAX_COUNT)).all():
        raise ValueError(f"beliefs are damaged: {name} must hold numbers in [0, {MAX_COUNT:.0f}]")
    return column
