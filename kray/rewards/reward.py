"""What a response earned, and what counts as a reward."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

from kray.text import brief, one_line


@dataclass(frozen=True, slots=True)
class Reward:
    """What a response earned.

    Attributes:
        value: The reward, finite.
        detail: A short reason in printable characters, for people; may be empty.
    """

    value: float
    detail: str = ""


# Characters of a detail that are kept.
_DETAIL_CHARACTERS = 1000


def as_reward(value: Any, verifier: str) -> Reward:
    """Convert what a verifier returned to a Reward with a finite float.

    Args:
        value: A Reward, a number, or a numpy scalar or array of one number.
        verifier: Name of the verifier, for error messages.

    Raises:
        ValueError: The value is not a finite number; the message names it.
    """
    detail: Any = ""
    if isinstance(value, Reward):
        value, detail = value.value, value.detail
    given = value
    # A numpy bool or an array of one number.
    if not isinstance(value, numbers.Real) and hasattr(value, "item") and getattr(value, "size", 2) == 1:
        value = value.item()
    if not isinstance(value, numbers.Real):
        raise ValueError(f'verifier "{verifier}" returned {brief(given)} ({type(given).__name__}), not a number')
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f'verifier "{verifier}" returned {brief(given)}, not a finite number')
    return Reward(number, one_line(str(detail), _DETAIL_CHARACTERS))
