"""What an answer can be."""

from __future__ import annotations

from dataclasses import dataclass

from kray.rewards.mathematics import units
from kray.rewards.mathematics.expressions import Node
from kray.rewards.mathematics.units import Unit


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number or an expression, with what it is counted in.

    decimal: its digits where it is written as one decimal; base: of its numeral, then `digits` holds that; modulus: of a
    residue class.
    """

    node: Node
    unit: Unit = units.NONE
    decimal: str = ""
    base: int = 10
    digits: str = ""
    modulus: Node | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """Text; letters in lower case where it has nothing but words, else as written without blanks."""

    text: str


@dataclass(frozen=True, slots=True)
class Several:
    """kind: "list" (no brackets: in any order), "set", "tuple" or "bracket" ([...] of other than two items)."""

    kind: str
    items: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """label = value."""

    label: str
    value: Answer


@dataclass(frozen=True, slots=True)
class Intervals:
    """A union of intervals: (lower, whether it belongs, upper, whether it belongs); `positive` > 0 says the same, if known."""

    pieces: tuple[tuple[Node, bool, Node, bool], ...]
    label: str = ""
    positive: Node | None = None


@dataclass(frozen=True, slots=True)
class Inequality:
    """positive > 0, or >= 0."""

    positive: Node
    strict: bool


@dataclass(frozen=True, slots=True)
class Equation:
    """zero = 0. value: where it is written as a sum of variables and its value (m + n = 5), that value."""

    zero: Node
    value: Quantity | None = None


@dataclass(frozen=True, slots=True)
class Ratio:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of the day or a duration; half: "am", "pm" or ""."""

    hours: int
    minutes: str
    half: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A matrix."""

    rows: tuple[tuple[Node, ...], ...]


Answer = Quantity | Words | Several | Named | Intervals | Inequality | Equation | Ratio | Clock | Grid


INFINITY: Node = ("const", "inf")


MINUS_INFINITY: Node = ("neg", INFINITY)


REALS = Intervals(((MINUS_INFINITY, False, INFINITY, False),))
