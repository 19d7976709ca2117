"""The outcome of an answer, and which values of a verifier are rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kray.text import one_line

# How the detail of an answer begins that took too long to judge.
TIMED_OUT = "timeout after"
# The range of rewards.
UNIT = (0.0, 1.0)
# Share of a range by which a value may lie beyond its ends: sums of floats do.
_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one answer.

    Attributes:
        reward: None exactly when `error` gives the reason.
        detail: The verifier's reason for the reward, in one line of printable characters whatever it wrote.
        error: Why there is no reward, likewise.
        timed_out: Whether judging exceeded the deadline; the reward is 0.
        elapsed_s: Seconds in the verifier.
        given: Result of a function that gives no reward (see worker.py); the reward is 0.
        skipped: Whether there is no reward because the function does not apply to the prompt.
        parts: Value of each of several functions that applies, by name.
        ends: Range that the function declares (`reward_range`) for the value as it gives it; None: it declares none.
    """

    reward: float | None
    detail: str = ""
    error: str = ""
    timed_out: bool = False
    elapsed_s: float = 0.0
    given: Any = None
    skipped: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)
    ends: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", one_line(self.detail))
        object.__setattr__(self, "error", one_line(self.error))


@dataclass(frozen=True, slots=True)
class Ranges:
    """Which values of verifiers are rewards: those between two ends, which become 0 and 1.

    Attributes:
        verifier: The run's verifier (reward.verifier).
        ends: Its ends (reward.range). Where these are 0 and 1, as those of all others are, a verifier may declare its own.
    """

    verifier: str
    ends: tuple[float, float] = UNIT

    def apply(self, verifier: str, outcome: Outcome) -> Outcome:
        """Return the outcome with its value mapped to [0, 1]; a data failure where it lies outside of its range.

        Args:
            verifier: Of the answer; "" for the run's.
            outcome: With the value as the verifier gave it.
        """
        if outcome.reward is None or outcome.timed_out:
            return outcome
        own, name = verifier in ("", self.verifier), verifier or self.verifier
        configured = self.ends if own else UNIT
        if wrong := conflict(name, outcome.ends, configured):
            return Outcome(None, error=wrong, elapsed_s=outcome.elapsed_s)
        ends = outcome.ends or configured
        reward = position(outcome.reward, *ends)
        if reward is not None:
            return outcome if reward == outcome.reward else replace(outcome, reward=reward)
        hint = (
            "reward.range: [lowest, highest]"
            if own
            else "its attribute reward_range = (lowest, highest), or as a function of reward.functions with a range"
        )
        asks = f"; if it is right, declare which values stand for 0 and 1: {hint}"
        text = (
            f'verifier "{name}" returned {outcome.reward:g}, which is not in {shown(ends)}'
            f"{', the reward_range that it declares' if outcome.ends else asks}"
        )
        return Outcome(None, error=text, elapsed_s=outcome.elapsed_s)

    def apply_all(
        self, verifiers: Sequence[str], outcomes: Sequence[Outcome], named: Mapping[str, Any]
    ) -> list[Outcome]:
        """Return outcomes as `apply` does; those of `named` functions, whose values are combined later, as they are."""
        return [
            outcome if verifier in named else self.apply(verifier, outcome)
            for verifier, outcome in zip(verifiers, outcomes, strict=True)
        ]


def conflict(name: str, declared: tuple[float, float] | None, configured: tuple[float, float]) -> str:
    """Return why a verifier's own range and that of the configuration (reward.range) exclude each other, else ""."""
    if declared is None or configured in (UNIT, declared):
        return ""
    return (
        f'reward.range is {shown(configured)}, but verifier "{name}" declares the reward_range {shown(declared)}: leave '
        "reward.range out"
    )


def shown(ends: tuple[float, float]) -> str:
    """Return a range as messages show it."""
    return f"[{ends[0]:g}, {ends[1]:g}]"


def position(value: float, low: float, high: float) -> float | None:
    """Return where a value lies between `low`, which is 0, and `high`, which is 1; None where it lies outside."""
    slack = _SLACK * (high - low)
    if not low - slack <= value <= high + slack:
        return None
    return min(1.0, max(0.0, (value - low) / (high - low)))
