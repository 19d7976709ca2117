"""What a study shows of the claims, by rules that were fixed before anything was measured.

A rule looks at one number a seed, paired between methods, and its 95 % interval by Student's t. Of twenty claims with nothing
to them, one would lie outside its own interval by luck; so the p-values of all claims that a study measures with at least
two seeds are adjusted by Holm's method, and a claim is decided when its adjusted one is at most .05. held: the mean is then
on the claim's side of the threshold. failed: it is on the other side. undecided: neither. not measured: the study lacks a
method that the claim is about, or what it is measured by. In at most one of twenty studies any claim is decided wrongly by
luck. What a claim's own interval says alone is shown beside it. One seed decides nothing, nor do seeds without any spread.
`accuracy` is held-out, at the end, exact where it is known. The claims: plan_claims.py, teaching_claims.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kray.compare.plan_claims import PLAN_CLAIMS
from kray.compare.results import Results
from kray.compare.rules import HELD, SETTING, UNMEASURED, Claim, decided, outcome
from kray.compare.stats import Interval, holm
from kray.compare.teaching_claims import TEACHING_CLAIMS

CLAIMS = (*PLAN_CLAIMS, *TEACHING_CLAIMS)


@dataclass(frozen=True)
class Verdict:
    """What a study shows of a claim.

    Attributes:
        claim: Its text.
        whose: Who claims it.
        measured: The measured value for people.
        interval: Its 95 % interval for people.
        outcome: HELD, FAILED, UNDECIDED or UNMEASURED, with Holm's correction over the study's claims.
        alone: The outcome by the claim's own interval.
        p: Two-sided p-value, NaN where there is no interval.
        p_holm: The same, adjusted.
    """

    claim: str
    whose: str
    measured: str
    interval: str
    outcome: str
    alone: str
    p: float
    p_holm: float


def verdicts(results: Results) -> list[Verdict]:
    """Return the verdict of every claim, by the rule at the top of this file."""
    measured = [measure(claim, results) for claim in CLAIMS]
    tested = [i for i, found in enumerate(measured) if found is not None and found.seeds > 1]
    p_values = [_p_value(CLAIMS[i], measured[i]) for i in tested]
    adjusted = dict(zip(tested, holm(p_values), strict=True))
    return [
        judge(claim, found, results, adjusted.get(i, float("nan")))
        for i, (claim, found) in enumerate(zip(CLAIMS, measured, strict=True))
    ]


def measure(claim: Claim, results: Results) -> Interval | None:
    """Return what a study measures of a claim; None where it has no runs or no numbers for it."""
    if not all(results.runs.get(name) for name in claim.needs):
        return None
    found = claim.measure(results)
    return found if found.seeds else None


def judge(claim: Claim, found: Interval | None, results: Results, p_holm: float) -> Verdict:
    """Return the verdict of a claim.

    Args:
        claim: The claim.
        found: What `measure` returned.
        results: Of the study.
        p_holm: The adjusted p-value of the claim.
    """
    p = _p_value(claim, found)
    if found is None:
        missing = [name for name in claim.needs if not results.runs.get(name)]
        why = f"no runs of {', '.join(missing)}" if missing else "the runs lack what it is measured by"
        return Verdict(claim.text, claim.whose, why, "", UNMEASURED, UNMEASURED, p, p_holm)
    note = claim.note(results) if claim.note else ""
    text = f"{note}{amount(found.mean, claim.unit)}"
    alone, corrected = outcome(found, claim.least, claim.below), decided(found, claim.least, p_holm, claim.below)
    return Verdict(claim.text, claim.whose, text, span(found, claim.unit), corrected, alone, p, p_holm)


def _p_value(claim: Claim, found: Interval | None) -> float:
    return float("nan") if found is None else found.p_value(claim.least)


def separates(found: list[Verdict]) -> bool:
    """Return whether more rollouts help in this setting: else no allocation of them can be told from another."""
    setting = [verdict.outcome for verdict in found if verdict.whose == SETTING]
    return setting[:2] == [HELD, HELD]


def amount(x: float, unit: str) -> str:
    """Return a factor, a share, a difference of shares in points, or a difference of accuracies, for people."""
    if not np.isfinite(x):
        return "–"
    if unit == "x":
        return f"{x:.2f} x"
    if unit == "share":
        return f"{x:.0%}"
    return f"{100 * x:+.1f} points" if unit == "%" else f"{x:+.4f}"


def span(found: Interval, unit: str) -> str:
    """Return an interval for people."""
    if found.flat:
        return f"no spread in {found.seeds} seeds"
    if not np.isfinite(found.low):
        return "1 seed" if found.seeds == 1 else "–"
    return f"{amount(found.low, unit)} to {amount(found.high, unit)} ({found.seeds} seeds)"


def chance(verdict: Verdict) -> str:
    """Return the p-values of a verdict for people, such as "p .034, with Holm .31"; "" where it has none."""
    if not np.isfinite(verdict.p):
        return ""
    return f"p {_shown(verdict.p)}, with Holm {_shown(verdict.p_holm)}"


def line(verdict: Verdict) -> str:
    """Return a verdict as a line for the terminal."""
    found = [verdict.measured, verdict.interval, chance(verdict)]
    alone = f" ({verdict.alone} by its own interval)" if verdict.alone != verdict.outcome else ""
    return f"{verdict.outcome:<12} {verdict.claim}: {'; '.join(filter(None, found))}{alone}"


def _shown(p: float) -> str:
    return "under .0001" if p < 1e-4 else f"{p:.2g}".replace("0.", ".", 1)
