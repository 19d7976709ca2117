"""The results of a comparison as Markdown tables, for a README or a note. Pure text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from kray.compare.costs import FlopsModel
from kray.compare.stats import Interval

# Headings of the costs, in the order of CURRENCIES.
COSTS = {
    "rollouts": "rollouts",
    "tokens": "tokens",
    "seconds": "seconds",
    "flops": "FLOPs",
    "flops_weighted": "FLOPs, gen. x {:g}",
}
# Digits before the point from which a number is written in thousands.
LARGE = 100_000


def markdown(
    numbers: Mapping[str, dict[str, Any]],
    pairs: Mapping[str, Mapping[str, dict[str, Any]]],
    rivals: Sequence[str],
    model: FlopsModel,
    title: str,
    missing: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the results as Markdown: a table of the methods, and one of what each spends until a rival's accuracy.

    Args:
        numbers: Of `summary`.
        pairs: Of `pairs`.
        rivals: Whose final accuracies are to be reached.
        model: Of the FLOPs.
        title: Of the page.
        missing: Runs that are not done -> why each was given up, "" where it was not.
    """
    unit = "in steps of `uniform`" if "uniform" in numbers else "for each parameter"
    parts = [
        f"# {title}",
        method_table(numbers, model),
        f"Accuracy: held-out, at the end; ±: half the 95 % interval, of differences paired by seed. Entropy: nats a token. "
        f"FLOPs: {unit}; {model.text}. Gen. x {model.generation_factor:g}: generation counted at its lower utilisation.",
    ]
    if missing:
        gaps = [f"{name}{f' ({why})' if why else ''}" for name, why in missing.items()]
        parts.insert(1, f"Missing runs: {'; '.join(gaps)}.")
    known = [rival for rival in rivals if rival in numbers]
    if any(method != rival for method in numbers for rival in known):
        parts += [
            "## Until a rival's final accuracy",
            reach_table(pairs, known, model),
            "What a method spends until the rival's final accuracy of the same seed, as a share of all that the rival spends: "
            "the mean over the seeds that reach it.",
        ]
    return "\n\n".join(parts) + "\n"


def method_table(numbers: Mapping[str, dict[str, Any]], model: FlopsModel) -> str:
    """Return a row a method: accuracy, what must not fall, and all costs."""
    head = ["method", "seeds", "accuracy", "less uniform", "greedy", "entropy", "p > .9", *_headings(model)]
    rows = [
        [
            f"`{method}`",
            str(len(row["seeds"])),
            _mean(row["accuracy"], ".4f"),
            "" if method == "uniform" else plus_minus(Interval(**row["difference"])),
            _mean(row["greedy"], ".3f"),
            _mean(row["entropy"], ".3f"),
            _mean(row["mastered"], ".3f"),
            *(amount(row[currency]) for currency in COSTS),
        ]
        for method, row in numbers.items()
    ]
    return _table(head, rows)


def reach_table(pairs: Mapping[str, Mapping[str, dict[str, Any]]], rivals: Sequence[str], model: FlopsModel) -> str:
    """Return a row for each rival and method."""
    head = ["rival", "method", "accuracy less rival's", "reached", *_headings(model)]
    rows = []
    for rival in rivals:
        for method, others in pairs.items():
            if rival in others:
                pair = others[rival]
                difference, reached = (
                    plus_minus(Interval(**pair["difference"])),
                    f"{pair['reached']} of {pair['seeds']}",
                )
                shares = [percent(pair[f"{currency}_share"]["mean"]) for currency in COSTS]
                rows.append([f"`{rival}`", f"`{method}`", difference, reached, *shares])
    return _table(head, rows)


def plus_minus(span: Interval, form: str = ".4f") -> str:
    """Return a difference with half its interval."""
    if not math.isfinite(span.mean):
        return "–"
    half = f" ± {format(span.high - span.mean, form)}" if math.isfinite(span.high) else ""
    return f"{format(span.mean, '+' + form)}{half}"


def amount(x: float) -> str:
    """Return a cost with about three digits."""
    if not math.isfinite(x):
        return "–"
    return f"{x / 1000:,.0f} k" if x >= LARGE else f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def percent(x: float) -> str:
    """Return a share; "–" where there is none."""
    return f"{x:.0%}" if math.isfinite(x) else "–"


def _headings(model: FlopsModel) -> list[str]:
    return [name.format(model.generation_factor) for name in COSTS.values()]


def _mean(span: Mapping[str, Any], form: str) -> str:
    return format(span["mean"], form) if math.isfinite(span["mean"]) else "–"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
