"""Parse relations: equations, inequalities, labels with their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from kray.rewards.mathematics import units
from kray.rewards.mathematics.answer_types import (
    INFINITY,
    MINUS_INFINITY,
    Answer,
    Equation,
    Inequality,
    Intervals,
    Named,
    Quantity,
    Several,
    Words,
)
from kray.rewards.mathematics.evaluation import CONTEXTS, constant, evaluate, less
from kray.rewards.mathematics.expressions import GREEK, Node, read, symbols
from kray.rewards.mathematics.notation import WORDS_CLOSE, WORDS_OPEN, split
from kray.rewards.mathematics.numbers import same_value
from kray.rewards.mathematics.quantities import read_quantity
from kray.rewards.mathematics.words import NO_LABEL, is_words

_VARIABLE = rf"(?:\\(?:{'|'.join(sorted(GREEK))})(?![A-Za-z])|[A-Za-df-hj-z])(?:_(?:\{{[^{{}}]*\}}|\w))?'*"
_LABEL = re.compile(
    rf"""
      {_VARIABLE} (?:\((?:[\w\s,=<>|+\-]|\\[a-zA-Z]+)*\))?                       # x, x_1, f', f(x), P(X = 1)
      |(?:m\s*)?\\(?:angle|triangle|measuredangle)\s*[A-Z]{{1,4}}
      |\|?[A-Z]{{2,4}}\|?(?:\^2)?|\[[A-Z]{{3,4}}\]|\\overline\s*\{{[A-Z]{{2}}\}}|\|\s*[A-Z]\s*\||\#\s*[A-Z]
      |\\frac\s*\{{d\w?\}}\s*\{{d\w\}}
      |\\lfloor\s*{_VARIABLE}\s*\\rfloor
      |{_VARIABLE}\s*\\[pb]?mod\s*\{{?\d+\}}?
      |\(\s*[a-z](?:_\w)?(?:\s*,\s*[a-z](?:_\w)?)+\s*\)
    """,
    re.VERBOSE,
)
_RELATIONS = frozenset(("=", "<", ">", "\\le", "\\ge", "\\ne", "\\approx", "\\in", "\\equiv"))


def read_relation(text: str, read_side: Callable[[str], Answer]) -> Answer | None:
    """Parse a relation: label = value, an equation, an inequality, x in a set.

    Args:
        text: Normalized text.
        read_side: Parses one side.

    Returns:
        The answer; None where the text is not a relation.

    Raises:
        Unreadable: A part of it is not understood.
    """
    sides, relations = split(text, _RELATIONS)
    if not relations or not all(sides):
        return None
    if len(sides) == 2 and relations[0] in ("=", "\\ne") and is_label(sides[1]) and not is_label(sides[0]):
        sides = sides[::-1]
    if set(relations) <= {"=", "\\approx", "\\equiv", "\\in"}:
        return _read_equality(sides, relations, read_side)
    if set(relations) <= {"<", ">", "\\le", "\\ge"} and len(sides) <= 3:
        return _read_inequality(sides, relations)
    if relations == ["\\ne"] and is_label(sides[0]):
        point = read(sides[1])
        constant(point)
        return Intervals(((MINUS_INFINITY, False, point, False), (point, False, INFINITY, False)), sides[0])
    return None


def is_label(text: str) -> bool:
    """Return whether a text names something whose value may follow: x, f(x), \\angle ABC, words."""
    if NO_LABEL.search(text):
        return False
    text = text.strip("{} ") if text[:1] == "{" else text
    if text[:1] == WORDS_OPEN and WORDS_CLOSE not in text[:-1] and text[-1:] == WORDS_CLOSE:
        return True
    return _LABEL.fullmatch(text.strip()) is not None or is_words(text)


def _read_equality(sides: list[str], relations: list[str], read_side: Callable[[str], Answer]) -> Answer | None:
    """Parse label = value, steps that end in a value, or an equation. Steps that are not equal are Words."""
    if is_label(sides[0]):
        rest = sides[1:]
        value = read_side(rest[0]) if len(rest) == 1 else _read_equality(rest, relations[1:], read_side)
        return None if value is None else _named(re.sub(r"\s", "", sides[0]), value)
    if "\\in" in relations or "\\equiv" in relations:
        return None
    steps = [read_quantity(side) for side in sides]
    # m + n = 30 + 31 = 61: the quantity that the question is about, and its value.
    is_quantity = len(symbols(steps[0].node)) > 1 or _applies(steps[0].node)
    if is_quantity and len(sides) > 2:
        return _read_equality(sides[1:], relations[1:], read_side)
    if _consistent(steps):
        # The steps of a calculation end in the answer, or in a rounding of the answer.
        if "\\approx" in relations or any(step.decimal for step in steps):
            return Several("steps", (steps[-1], *(step for step in steps if not step.decimal)))
        return steps[-1]
    if len(steps) == 2 and relations == ["="] and symbols(steps[0].node) | symbols(steps[1].node):
        value = steps[1] if is_quantity and not symbols(steps[1].node) else None
        return Equation(("add", steps[0].node, ("neg", steps[1].node)), value)
    return Words(f"contradiction:{'='.join(sides)}")


def _named(label: str, value: Answer) -> Answer:
    """Name a value; (y, x) = (1, 2) names each variable's value."""
    names = label.strip("()").split(",")
    if label[:1] == "(" and isinstance(value, Several) and value.kind == "tuple" and len(names) == len(value.items):
        return Several("tuple", tuple(map(Named, names, value.items)))
    return Named(label, value)


def _consistent(steps: list[Quantity]) -> bool:
    """Return whether exact steps of a calculation are all equal, and each decimal is equal to one of them or rounds it.

    Without an exact step the decimal with the most digits counts as one.
    """
    exact = [step for step in steps if not step.decimal]
    decimals = [step for step in steps if step.decimal]
    exact = exact or [max(decimals, key=lambda step: len(step.decimal))]
    return all(same_value(_scaled(first), _scaled(second)) for first, second in pairwise(exact)) and all(
        same_value(_scaled(step), _scaled(exact[0])) or _rounds(step, exact[0]) for step in decimals
    )


def _rounds(rounded: Quantity, exact: Quantity) -> bool:
    """Return whether a decimal of at least two digits is another value rounded to its last place."""
    if symbols(exact.node) or len(rounded.decimal.replace(".", "").lstrip("0")) < 2:
        return False
    half = replace(rounded, node=("num", Fraction(1, 2 * 10 ** len(rounded.decimal.partition(".")[2]))))
    return not less(_scaled(half), ("fn", "abs", ("add", _scaled(rounded), ("neg", _scaled(exact)))))


def _applies(node: Node) -> bool:
    """Return whether an expression has an unknown function: f(1) + f(2)."""
    return node[:2] == ("fn", "applied") or any(_applies(child) for child in node[1:] if isinstance(child, tuple))


def _scaled(quantity: Quantity) -> Node:
    percent = Fraction(1, 100) if quantity.unit.measures(units.PERCENT) else Fraction(1)
    return ("mul", quantity.node, ("num", quantity.unit.scale * percent))


def _read_inequality(sides: list[str], relations: list[str]) -> Answer | None:
    # From right to left.
    if any(relation[-1] in ">e" and relation != "\\le" for relation in relations):
        if not all(relation in (">", "\\ge") for relation in relations):
            return None
        sides, relations = sides[::-1], relations[::-1]
    closed = [relation in ("\\le", "\\ge") for relation in relations]
    nodes = [read(side) for side in sides]
    variable = [number for number, node in enumerate(nodes) if node[0] == "sym"]
    constants = [number for number, node in enumerate(nodes) if not symbols(node)]
    if len(nodes) == 3:
        if variable != [1] or constants != [0, 2] or not less(nodes[0], nodes[2]):
            return None
        return Intervals(((nodes[0], closed[0], nodes[2], closed[1]),), nodes[1][1])
    if len(constants) == 2:
        return Words(f"inequality:{'<'.join(sides)}")
    if (
        len(constants) == 1
        and nodes[0][:2] == ("fn", "abs")
        and constants == [1]
        and (ends := _around(nodes[0][2], nodes[1]))
    ):
        return Intervals(((ends[0], closed[0], ends[1], closed[0]),), "".join(symbols(nodes[0])))
    positive = ("add", nodes[1], ("neg", nodes[0]))
    if variable == [0] and constants:
        return Intervals(((MINUS_INFINITY, False, nodes[1], closed[0]),), nodes[0][1], positive)
    if variable == [1] and constants:
        return Intervals(((nodes[0], closed[0], INFINITY, False),), nodes[1][1], positive)
    return Inequality(positive, not closed[0])


def _around(inside: Node, distance: Node) -> tuple[Node, Node] | None:
    """Return the ends of |x - a| < distance; None where the bars hold something else."""
    names = symbols(inside)
    if len(names) != 1:
        return None
    variable: Node = ("sym", *names)
    middle = ("add", variable, ("neg", inside))
    point = _constant_part(middle)
    if point is None or not same_value(middle, point):
        return None
    return ("add", point, ("neg", distance)), ("add", point, distance)


def _constant_part(node: Node) -> Node | None:
    """Return the value of an expression where its variables are 0; None where it is not rational."""
    try:
        value = evaluate(node, dict.fromkeys(symbols(node), Fraction(0)), CONTEXTS[0])
    except ArithmeticError:
        return None
    return ("num", value) if isinstance(value, Fraction) else None


def intersection(a: Intervals, b: Intervals) -> Answer | None:
    """Intersect two intervals of which one is unbounded above and one below: x > 1 and x < 3.

    Returns:
        The intersection; None for other intervals and where it is empty.
    """
    if len(a.pieces) != 1 or len(b.pieces) != 1:
        return None
    low = next((piece for piece in (*a.pieces, *b.pieces) if piece[2] == INFINITY), None)
    high = next((piece for piece in (*a.pieces, *b.pieces) if piece[0] == MINUS_INFINITY), None)
    if low is None or high is None or not less(low[0], high[2]):
        return None
    return Intervals(((low[0], low[1], high[2], high[3]),), a.label)
