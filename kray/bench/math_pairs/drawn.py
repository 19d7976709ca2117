"""The result of drawing from a family of answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawn answer.

    Attributes:
        answer: A right answer.
        same: Other ways to write it.
        different: Wrong answers that a single mistake makes of it.
    """

    answer: str
    same: list[str]
    different: list[str]
