"""What is claimed, and the rule by which it is judged, fixed before anything is measured.

A rule looks at one number a seed, paired between methods, and its 95 % interval by Student's t. Of twenty claims with nothing
to them, one would lie outside its own interval by luck; so the p-values of all claims that a study measures with at least
two seeds are adjusted by Holm's method, and a claim is decided when its adjusted one is at most .05. held: the mean is then
on the claim's side of the threshold. failed: it is on the other side. undecided: neither. not measured: the study lacks a
method that the claim is about, or exact success rates. In at most one of twenty studies any claim is decided wrongly by luck.
What a claim's own interval says alone is shown beside it. One seed decides nothing, nor do seeds without any spread.
`accuracy` is held-out, at the end, exact where it is known; `n` is the rollouts a step that all methods have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kray.compare.results import Results, Run
from kray.compare.stats import Interval, holm, interval, paired, ratio, share

HELD, FAILED, UNDECIDED, UNMEASURED = "held", "failed", "undecided", "not measured"
# Largest adjusted p-value of a decision, and what the 95 % intervals leave out.
LEVEL = 0.05
# Accuracy that "not below" allows: less than any effect that is claimed.
MARGIN = 0.005
# The method of kray's defaults: static, with the default number of candidates.
DEFAULT = "kray"
# The same, but every prompt that a step offers is visited.
KNAPSACK = "static"


@dataclass(frozen=True)
class Claim:
    """A claim about methods.

    Attributes:
        text: The claim.
        whose: Who claims it.
        needs: Methods that it is about.
        measure: Gives the interval that is compared with `least`.
        least: The threshold.
        unit: Of both: "" for accuracy, "%" for points of a share, "x" for a factor.
        note: Gives a text before the measured value.
    """

    text: str
    whose: str
    needs: tuple[str, ...]
    measure: Callable[[Results], Interval]
    least: float = 0.0
    unit: str = ""
    note: Callable[[Results], str] | None = None


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


def accuracy(run: Run) -> float:
    """Return the run's accuracy at the end."""
    return run.final


def gain(ours: str, theirs: str, of: Callable[[Run], float] = accuracy) -> Callable[[Results], Interval]:
    """Return a measure: our number minus theirs, paired by seed."""
    return lambda results: paired(results.seeds(ours, of), results.seeds(theirs, of))


def relative(ours: str, theirs: str, of: Callable[[Run], float]) -> Callable[[Results], Interval]:
    """Return a measure: our number over theirs, paired by seed."""
    return lambda results: ratio(results.seeds(ours, of), results.seeds(theirs, of))


def beyond_share(ours: str, least: float) -> Callable[[Results], Interval]:
    """Return a measure: our gain over uniform minus a share of the ceiling's, which is linear and so has an interval."""

    def measure(results: Results) -> Interval:
        mine, base, top = (results.seeds(name, accuracy) for name in (ours, "uniform", "exact_p"))
        both = sorted(mine.keys() & base.keys() & top.keys())
        return interval([(mine[s] - base[s]) - least * (top[s] - base[s]) for s in both])

    return measure


def _share_note(results: Results) -> str:
    part = share(*(results.seeds(name, accuracy) for name in (DEFAULT, "uniform", "exact_p")))
    gains = f"{part:.0%} of the ceiling's gain" if np.isfinite(part) else "the ceiling gains nothing"
    return f"{gains}; gain less 60 % of the ceiling's: "


def late_rollouts(run: Run) -> float:
    """Return the share of rollouts in groups with mixed rewards, after the first epoch."""
    return run.late(run.effective_rollouts)


def late_prompts(run: Run) -> float:
    """Return the share of prompts with mixed rewards, after the first epoch."""
    return run.late(run.effective_prompts)


PAPER, KRAY, SETTING, RIVAL = "Knapsack RL", "kray", "setting", "rival"
CLAIMS = (
    Claim(
        "Half the rollouts are worse than n: uniform",
        SETTING,
        ("uniform", "uniform_half"),
        gain("uniform", "uniform_half"),
    ),
    Claim(
        "Twice the rollouts are better than n: uniform",
        SETTING,
        ("uniform", "uniform_twice"),
        gain("uniform_twice", "uniform"),
    ),
    Claim(
        "Exact knowledge of success rates gains accuracy", SETTING, ("uniform", "exact_p"), gain("exact_p", "uniform")
    ),
    Claim(
        "Exact knowledge gains accuracy with twice as many prompts a step, too",
        SETTING,
        ("uniform_wide", "exact_p_wide"),
        gain("exact_p_wide", "uniform_wide"),
    ),
    Claim(
        "At least 20 % more rollouts carry a gradient (the paper: 20 to 40 %)",
        PAPER,
        ("paper", "uniform"),
        relative("paper", "uniform", late_rollouts),
        1.2,
        "x",
    ),
    Claim("More prompts teach, too", PAPER, ("paper", "uniform"), gain("paper", "uniform", late_prompts), 0.0, "%"),
    Claim(
        "Some prompts get 11.6 times the mean budget (the paper: up to 93 rollouts of a mean of 8)",
        PAPER,
        ("paper",),
        lambda results: interval(list(results.seeds("paper", Run.largest_budget).values())),
        93 / 8,
        "x",
    ),
    Claim(
        "At least 2 points more accuracy than uniform (the paper: 2 to 4)",
        PAPER,
        ("paper", "uniform"),
        gain("paper", "uniform"),
        0.02,
    ),
    Claim(
        f"Half the compute: with n not below uniform with 2n (by more than {MARGIN})",
        PAPER,
        ("paper", "uniform_twice"),
        gain("paper", "uniform_twice"),
        -MARGIN,
    ),
    Claim("The default is better than uniform", KRAY, (DEFAULT, "uniform"), gain(DEFAULT, "uniform")),
    Claim("The default is better than the paper's rule", KRAY, (DEFAULT, "paper"), gain(DEFAULT, "paper")),
    Claim(
        "The default has at least 60 % of the gain of exact knowledge",
        KRAY,
        (DEFAULT, "uniform", "exact_p"),
        beyond_share(DEFAULT, 0.6),
        0.0,
        "",
        _share_note,
    ),
    Claim(
        f"The default with n is not below uniform with 2n (by more than {MARGIN})",
        KRAY,
        (DEFAULT, "uniform_twice"),
        gain(DEFAULT, "uniform_twice"),
        -MARGIN,
    ),
    Claim(
        "The default is better than its loss weights on uniform budgets",
        KRAY,
        (DEFAULT, "weight_only"),
        gain(DEFAULT, "weight_only"),
    ),
    Claim(
        "The default solves hard held-out prompts (p under .05 at first) at least 1.3 times as often as uniform",
        KRAY,
        (DEFAULT, "uniform"),
        relative(DEFAULT, "uniform", Run.hard_rate),
        1.3,
        "x",
    ),
    Claim(
        "The default is better than uniform budgets for as many prompts as it is offered",
        KRAY,
        (DEFAULT, "uniform_wide"),
        gain(DEFAULT, "uniform_wide"),
    ),
    Claim(
        "Planning for twice as many prompts is better than for a step's own",
        KRAY,
        (DEFAULT, KNAPSACK),
        gain(DEFAULT, KNAPSACK),
    ),
    Claim(
        "Passing prompts over (at least 4 rollouts for those visited) is better than the default",
        KRAY,
        ("kray_deep", DEFAULT),
        gain("kray_deep", DEFAULT),
    ),
    Claim(
        "For a step's own prompts, the knapsack on beliefs is better than uniform",
        KRAY,
        (KNAPSACK, "uniform"),
        gain(KNAPSACK, "uniform"),
    ),
    Claim(
        "For a step's own prompts, it is better than the paper's rule",
        KRAY,
        (KNAPSACK, "paper"),
        gain(KNAPSACK, "paper"),
    ),
    Claim(
        "For a step's own prompts, token_mean is better than prompt_mean",
        KRAY,
        (KNAPSACK, "static_prompt_mean"),
        gain(KNAPSACK, "static_prompt_mean"),
    ),
    Claim(
        "For a step's own prompts, planning inside the step is better than before it",
        KRAY,
        ("online", KNAPSACK),
        gain("online", KNAPSACK),
    ),
    Claim(
        "CoBA-RL is at least 1.1 points above the paper's rule (its authors: 1.1 to 3.2)",
        RIVAL,
        ("coba", "paper"),
        gain("coba", "paper"),
        0.011,
    ),
    Claim("Pilot-commit is better than uniform", RIVAL, ("pilot_commit", "uniform"), gain("pilot_commit", "uniform")),
    Claim(
        "Dynamic sampling is better than uniform, step for step (it spends more rollouts)",
        RIVAL,
        ("dynamic_sampling", "uniform"),
        gain("dynamic_sampling", "uniform"),
    ),
)


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
        why = f"no runs of {', '.join(missing)}" if missing else "no exact success rates"
        return Verdict(claim.text, claim.whose, why, "", UNMEASURED, UNMEASURED, p, p_holm)
    note = claim.note(results) if claim.note else ""
    text = f"{note}{amount(found.mean, claim.unit)}"
    alone, corrected = outcome(found, claim.least), decided(found, claim.least, p_holm)
    return Verdict(claim.text, claim.whose, text, span(found, claim.unit), corrected, alone, p, p_holm)


def _p_value(claim: Claim, found: Interval | None) -> float:
    return float("nan") if found is None else found.p_value(claim.least)


def outcome(found: Interval, least: float) -> str:
    """Return the outcome by an interval alone."""
    if found.low > least:
        return HELD
    return FAILED if found.high < least else UNDECIDED


def decided(found: Interval, least: float, p: float) -> str:
    """Return the outcome by an adjusted p-value."""
    if not p <= LEVEL:
        return UNDECIDED
    return HELD if found.mean > least else FAILED


def separates(found: list[Verdict]) -> bool:
    """Return whether more rollouts help in this setting: else no allocation of them can be told from another."""
    setting = [verdict.outcome for verdict in found if verdict.whose == SETTING]
    return setting[:2] == [HELD, HELD]


def amount(x: float, unit: str) -> str:
    """Return a factor, a difference of shares in points, or a difference of accuracies, for people."""
    if not np.isfinite(x):
        return "–"
    if unit == "x":
        return f"{x:.2f} x"
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
