"""The numbers of a comparison: each method's accuracy and costs over its seeds, and each pair's differences by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from kray.compare.results import CURRENCIES, Results, Run
from kray.compare.rules import late_prompts, late_rollouts
from kray.compare.stats import cost_to, interval, paired, share


def finite(value: Any) -> Any:
    """With None in place of every number that was not measured: JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary(results: Results) -> dict[str, dict[str, Any]]:
    """Of each method: means with 95 % intervals over seeds, and differences with uniform paired by seed."""
    base = results.seeds("uniform", lambda run: run.final)
    top = results.seeds("exact_p", lambda run: run.final)
    goals = {seed: run.final for seed, run in results.runs.get("uniform", {}).items()}
    found = {}
    for method, runs in results.runs.items():
        final = results.seeds(method, lambda run: run.final)
        reach = {s: cost_to(r.rollouts.tolist(), r.accuracy.tolist(), goals[s]) for s, r in runs.items() if s in goals}
        found[method] = {
            "seeds": sorted(runs),
            "accuracy": asdict(interval(list(final.values()))),
            "accuracy_by_seed": final,
            "difference": asdict(paired(final, base)),
            "ceiling_share": share(final, base, top),
            "sampled": _over(runs.values(), lambda run: run.sampled[-1]),
            "greedy": _over(runs.values(), Run.last_greedy),
            "entropy": _over(runs.values(), Run.last_entropy),
            "mastered": _over(runs.values(), Run.mastered),
            "start": float(np.mean([run.accuracy[0] for run in runs.values()])),
            "rollouts_to_uniform": asdict(interval(list(reach.values()))),
            "reached_uniform": sum(math.isfinite(x) for x in reach.values()),
            "effective_rollouts": _over(runs.values(), late_rollouts),
            "effective_prompts": _over(runs.values(), late_prompts),
            "largest_budget": max(max(line["budgets"]) for run in runs.values() for line in run.visits),
            **{currency: _spent(results, runs.values(), currency) for currency in CURRENCIES},
            "by_difficulty": np.mean([r.by_difficulty() for r in runs.values()], axis=0).tolist(),
            "transitions": np.sum([run.transitions() for run in runs.values()], axis=0).tolist(),
        }
    return found


def pairs(results: Results) -> dict[str, dict[str, dict[str, Any]]]:
    """Return method -> rival -> what is known of the two over the seeds that both have.

    Returns:
        difference: of the final accuracies. seeds and reached: the common seeds, and those in which the method reaches the
        rival's final accuracy. Of each currency, over these alone: what the method spends until then (<currency>), and the
        share of all that the rival spends (<currency>_share).
    """
    return {
        method: {rival: _pair(results, method, rival) for rival in results.runs if rival != method}
        for method in results.runs
    }


def _pair(results: Results, method: str, rival: str) -> dict[str, Any]:
    mine, theirs = results.runs[method], results.runs[rival]
    both = sorted(mine.keys() & theirs.keys())
    finals = [results.seeds(name, lambda run: run.final) for name in (method, rival)]
    found: dict[str, Any] = {
        "difference": asdict(paired(*finals)),
        "seeds": len(both),
        "reached": sum(bool((mine[seed].accuracy >= theirs[seed].final).any()) for seed in both),
    }
    for currency in CURRENCIES:
        shares = [results.share_to_reach(mine[seed], theirs[seed], currency) for seed in both]
        whole = [float(results.spent(theirs[seed], currency)[-1]) for seed in both]
        found[currency] = asdict(interval([part * all_ for part, all_ in zip(shares, whole, strict=True)]))
        found[f"{currency}_share"] = asdict(interval(shares))
    return found


def _over(runs: Iterable[Run], of: Callable[[Run], float]) -> dict[str, Any]:
    return asdict(interval([of(run) for run in runs]))


def _spent(results: Results, runs: Iterable[Run], currency: str) -> float:
    return float(np.mean([results.spent(run, currency)[-1] for run in runs]))
