"""A step's visits of prompts as a line of JSON, for comparisons and audits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kray.rollout.collected import CollectedStep

# Digits of success rates after the point.
DIGITS = 6


def visit(number: int, collected: CollectedStep, rates: Mapping[str, float]) -> dict[str, Any]:
    """Return a line of visits.jsonl.

    Args:
        number: Of the step, counted from 1.
        collected: The step.
        rates: Prompt id -> exact success rate before the step; empty where it is not known.

    Returns:
        step; ids, budgets, weights, successes, trials and sampled tokens of the prompts that were visited; with `rates`
        also their rates as p.
    """
    allocation = collected.allocation
    successes, trials = collected.labels()
    tokens = {group.prompt.id: group.tokens for group in collected.groups}
    line: dict[str, Any] = {
        "step": number,
        "ids": list(allocation.prompt_ids),
        "budgets": allocation.budgets.tolist(),
        "weights": [round(float(weight), 3) for weight in allocation.weights],
        "successes": successes.tolist(),
        "trials": trials.tolist(),
        "tokens": [tokens.get(i, 0) for i in allocation.prompt_ids],
    }
    if rates:
        line["p"] = rounded(rates[i] for i in allocation.prompt_ids)
    return line


def rounded(rates: Iterable[float]) -> list[float]:
    """Return success rates with DIGITS digits after the point."""
    return [round(float(rate), DIGITS) for rate in rates]
