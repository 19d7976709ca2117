"""The types of parsed answers."""

from __future__ import annotations

from dataclasses import dataclass

from kray.rewards.mathematics import units
from kray.rewards.mathematics.expressions import Node
from kray.rewards.mathematics.units import Unit


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number or an expression with its unit.

    Attributes:
        node: The expression.
        unit: NONE without one.
        decimal: The digits of a number written as one decimal, else "".
        base: Base of the numeral.
        digits: The numeral, where it has a base.
        modulus: Modulus of a residue class.
    """

    node: Node
    unit: Unit = units.NONE
    decimal: str = ""
    base: int = 10
    digits: str = ""
    modulus: Node | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """Text: in lower case where it consists of words only, else as written without blanks."""

    text: str


@dataclass(frozen=True, slots=True)
class Several:
    """Several values.

    Attributes:
        kind: "list" (no brackets, in any order), "set", "tuple", "bracket" ([...] with other than two items), or "steps" (any
            of which is the answer).
        items: The values.
    """

    kind: str
    items: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """A label and its value: x = 3."""

    label: str
    value: Answer


@dataclass(frozen=True, slots=True)
class Intervals:
    """A union of intervals.

    Attributes:
        pieces: (lower end, whether it belongs to the interval, upper end, whether it belongs) of each.
        label: Name of the variable, if there is one.
        positive: An expression that is positive exactly in the interval, if known.
    """

    pieces: tuple[tuple[Node, bool, Node, bool], ...]
    label: str = ""
    positive: Node | None = None


@dataclass(frozen=True, slots=True)
class Inequality:
    """The inequality positive > 0 (strict) or positive >= 0."""

    positive: Node
    strict: bool


@dataclass(frozen=True, slots=True)
class Equation:
    """The equation zero = 0; `value` is the value of a sum of variables (m + n = 5)."""

    zero: Node
    value: Quantity | None = None


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio: 2:3."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day or a duration; `half` is "am", "pm" or ""."""

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
