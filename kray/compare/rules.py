"""The parts of a claim's rule: what is measured of each seed, the interval over seeds, and the outcome.

What the outcomes mean, and how the claims of a study are judged together: kray/compare/verdicts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kray.compare.results import Results, Run
from kray.compare.stats import Interval, interval, paired, ratio, share

HELD, FAILED, UNDECIDED, UNMEASURED = "held", "failed", "undecided", "not measured"
# Largest adjusted p-value of a decision, and what the 95 % intervals leave out.
LEVEL = 0.05
# Accuracy that "not below" allows: less than any effect that is claimed.
MARGIN = 0.005
# Share of a rival's costs that a run counts as needing which never reaches the rival's accuracy: far above any threshold.
NEVER = 2.0
# The method of kray's defaults.
DEFAULT = "kray"

# Who makes a claim.
PAPER, KRAY, SETTING, RIVAL, CONTROL, LIMIT = "Knapsack RL", "kray", "setting", "rival", "control", "limit"


@dataclass(frozen=True)
class Claim:
    """A claim about methods.

    Attributes:
        text: The claim.
        whose: Who claims it.
        needs: Methods that it is about.
        measure: Gives the interval that is compared with `least`.
        least: The threshold, which must be exceeded.
        unit: Of both: "" for accuracy, "%" for points of a share, "x" for a factor, "share" for a share.
        note: Gives a text before the measured value.
        below: The threshold must be undercut instead.
    """

    text: str
    whose: str
    needs: tuple[str, ...]
    measure: Callable[[Results], Interval]
    least: float = 0.0
    unit: str = ""
    note: Callable[[Results], str] | None = None
    below: bool = False


def accuracy(run: Run) -> float:
    """Return the run's accuracy at the end."""
    return run.final


def gain(ours: str, theirs: str, of: Callable[[Run], float] = accuracy) -> Callable[[Results], Interval]:
    """Return a measure: our number minus theirs, paired by seed."""
    return lambda results: paired(results.seeds(ours, of), results.seeds(theirs, of))


def relative(ours: str, theirs: str, of: Callable[[Run], float]) -> Callable[[Results], Interval]:
    """Return a measure: our number over theirs, paired by seed."""
    return lambda results: ratio(results.seeds(ours, of), results.seeds(theirs, of))


def beyond_share(ours: str, least: float, base: str = "uniform", top: str = "exact_p") -> Callable[[Results], Interval]:
    """Return a measure: our gain over base minus a share of the ceiling's, which is linear and so has an interval."""

    def measure(results: Results) -> Interval:
        mine, floor, ceiling = (results.seeds(name, accuracy) for name in (ours, base, top))
        both = sorted(mine.keys() & floor.keys() & ceiling.keys())
        return interval([(mine[s] - floor[s]) - least * (ceiling[s] - floor[s]) for s in both])

    return measure


def share_note(ours: str, least: float, base: str = "uniform", top: str = "exact_p") -> Callable[[Results], str]:
    """Return a note: our share of the ceiling's gain, before what `beyond_share` measures."""

    def note(results: Results) -> str:
        part = share(*(results.seeds(name, accuracy) for name in (ours, base, top)))
        gains = f"{part:.0%} of the ceiling's gain" if np.isfinite(part) else "the ceiling gains nothing"
        return f"{gains}; gain less {least:.0%} of the ceiling's: "

    return note


def needed_share(ours: str, rival: str, currency: str) -> Callable[[Results], Interval]:
    """Return a measure: what we spend until the rival's final accuracy as a share of all that the rival spends, by seed.

    A seed that never gets there has no such share; leaving it out would favour us. It counts as NEVER, or as what it spent
    if that is more.
    """

    def measure(results: Results) -> Interval:
        mine, theirs = results.runs.get(ours, {}), results.runs.get(rival, {})
        found = []
        for seed in sorted(mine.keys() & theirs.keys()):
            part = results.share_to_reach(mine[seed], theirs[seed], currency)
            spent = results.spent(mine[seed], currency)[-1] / results.spent(theirs[seed], currency)[-1]
            # NaN where the run does not know its costs
            found.append(part if np.isfinite(part) else max(NEVER, spent) if np.isfinite(spent) else spent)
        return interval(found)

    return measure


def reached_note(ours: str, rival: str) -> Callable[[Results], str]:
    """Return a note: in how many seeds we reach the rival's final accuracy."""

    def note(results: Results) -> str:
        mine, theirs = results.runs.get(ours, {}), results.runs.get(rival, {})
        both = mine.keys() & theirs.keys()
        reached = sum(bool((mine[seed].accuracy >= theirs[seed].final).any()) for seed in both)
        return f"reached in {reached} of {len(both)} seeds: "

    return note


def late_rollouts(run: Run) -> float:
    """Return the share of rollouts in groups with mixed rewards, after the first epoch."""
    return run.late(run.effective_rollouts)


def late_prompts(run: Run) -> float:
    """Return the share of prompts with mixed rewards, after the first epoch."""
    return run.late(run.effective_prompts)


def outcome(found: Interval, least: float, below: bool = False) -> str:
    """Return the outcome by an interval alone."""
    if below:
        return HELD if found.high < least else FAILED if found.low > least else UNDECIDED
    return HELD if found.low > least else FAILED if found.high < least else UNDECIDED


def decided(found: Interval, least: float, p: float, below: bool = False) -> str:
    """Return the outcome by an adjusted p-value."""
    if not p <= LEVEL:
        return UNDECIDED
    return HELD if (found.mean < least if below else found.mean > least) else FAILED
