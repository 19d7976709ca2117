"""What a family of answers draws."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Drawn:
    """answer: a right answer; same: other ways to write it; different: what one slip makes of it."""

    answer: str
    same: list[str]
    different: list[str]
