"""The outcome of an answer, and which values of a verifier are rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kray.text import one_line

# How the detail of an answer begins that took too long to judge.
TIMED_OUT = "timeout after"
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
    """

    reward: float | None
    detail: str = ""
    error: str = ""
    timed_out: bool = False
    elapsed_s: float = 0.0
    given: Any = None
    skipped: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", one_line(self.detail))
        object.__setattr__(self, "error", one_line(self.error))


@dataclass(frozen=True, slots=True)
class Ranges:
    """Which values of verifiers are rewards: those between two ends, which become 0 and 1.

    Attributes:
        verifier: The run's verifier (reward.verifier).
        ends: Its ends (reward.range); those of all others are 0 and 1.
    """

    verifier: str
    ends: tuple[float, float] = (0.0, 1.0)

    def apply(self, verifier: str, outcome: Outcome) -> Outcome:
        """Return the outcome with its value mapped to [0, 1]; a data failure where it lies outside of its range.

        Args:
            verifier: Of the answer; "" for the run's.
            outcome: With the value as the verifier gave it.
        """
        if outcome.reward is None or outcome.timed_out:
            return outcome
        own = verifier in ("", self.verifier)
        ends = self.ends if own else (0.0, 1.0)
        reward = position(outcome.reward, *ends)
        if reward is not None:
            return outcome if reward == outcome.reward else replace(outcome, reward=reward)
        hint = "reward.range: [lowest, highest]" if own else "as a function of reward.functions with a range"
        text = (
            f'verifier "{verifier or self.verifier}" returned {outcome.reward:g}, which is not in '
            f"[{ends[0]:g}, {ends[1]:g}]; if it is right, declare which values stand for 0 and 1: {hint}"
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


def position(value: float, low: float, high: float) -> float | None:
    """Return where a value lies between `low`, which is 0, and `high`, which is 1; None where it lies outside."""
    slack = _SLACK * (high - low)
    if not low - slack <= value <= high + slack:
        return None
    return min(1.0, max(0.0, (value - low) / (high - low)))
