"""Measures the rates of wrong verdicts over pairs of answers, and the time that a verdict takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Pair:
    """A right answer, a response, and the response's correct reward, 0 or 1."""

    answer: str
    response: str
    reward: float


def rates(judge: Callable[[str, str], float], rows: Sequence[Pair]) -> tuple[dict[str, Any], list[Pair]]:
    """Score all pairs.

    Args:
        judge: (response, answer) -> reward; an exception counts as 0.
        rows: The pairs.

    Returns:
        Counts, rates and milliseconds a verdict (mean and median), and the pairs with a wrong verdict.
    """
    wrong, times_s = [], []
    for row in rows:
        started = time.perf_counter()
        try:
            value = judge(row.response, row.answer)
        except Exception:
            # An exception of another project's verifier counts as no reward.
            value = 0.0
        times_s.append(time.perf_counter() - started)
        if value != row.reward:
            wrong.append(row)
    right_rows = sum(row.reward == 1 for row in rows)
    false_positives = sum(row.reward == 0 for row in wrong)
    false_negatives = len(wrong) - false_positives
    figures = {
        "pairs": len(rows),
        "false_positives": false_positives,
        "of_wrong": len(rows) - right_rows,
        "false_negatives": false_negatives,
        "of_right": right_rows,
        "false_positive_rate": round(false_positives / max(1, len(rows) - right_rows), 4),
        "false_negative_rate": round(false_negatives / max(1, right_rows), 4),
        "mean_ms": round(sum(times_s) / max(1, len(rows)) * 1e3, 3),
        "median_ms": round(median(times_s) * 1e3, 3),
    }
    return figures, wrong


def boxed_by_math_verify(response: str, answer: str) -> float:
    """Score with math-verify as its documentation does: the right answer in a box, too."""
    import math_verify

    right = answer if "\\boxed" in answer else f"\\boxed{{{answer}}}"
    gold = math_verify.parse(right, parsing_timeout=None)
    return float(math_verify.verify(gold, math_verify.parse(response, parsing_timeout=None), timeout_seconds=None))
