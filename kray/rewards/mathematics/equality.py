"""Compare a given answer with the right one. The rules, in addition to those of numbers.py and units.py:

- Values without brackets may be in any order; sets, too, where repetitions are ignored; tuples, vectors and matrices are
  compared in order. A list without brackets equals a set in any order, a tuple only in order.
- Intervals are equal with their brackets; inequalities, x in [a, b] and unions are intervals. (a, b) may be either a pair
  or an open interval.
- label = value is the value; where both sides have labels, they must be the same. An equation is equal to its multiples.
- A base or modulus of the right answer may be left out; a numeral in another base is a different answer, and so is one
  that adds a base.
- 2:3 is 4:6 and 2/3. What looks like a time (7:30) is compared as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from kray.rewards.mathematics import units
from kray.rewards.mathematics.answer_types import (
    Answer,
    Clock,
    Equation,
    Grid,
    Inequality,
    Intervals,
    Named,
    Quantity,
    Ratio,
    Several,
    Words,
)
from kray.rewards.mathematics.answers import as_intervals
from kray.rewards.mathematics.evaluation import constant, in_order, less
from kray.rewards.mathematics.expressions import Node, symbols
from kray.rewards.mathematics.numbers import proportional, same_value
from kray.rewards.mathematics.tokens import Unreadable

# Most items of a list that are compared pairwise.
_MOST_COMPARED = 40


def same_answer(right: Answer, given: Answer, significant: int = 6, strict: bool = True) -> bool:
    """Return whether two answers are equal.

    Args:
        right: The right answer. The rules are not symmetric, as what a question fixes may be left out.
        given: The answer that is judged.
        significant: Digits from which on a decimal may be rounded, see `numbers.same_value`.
        strict: Whether brackets count; otherwise a list in any brackets equals the same values in any order.
    """
    return _Comparison(significant, strict).same(right, given)


class _Comparison:
    def __init__(self, significant: int, strict: bool) -> None:
        self.significant, self.strict = significant, strict

    def same(self, right: Answer, given: Answer) -> bool:
        if right == given:
            return True
        if isinstance(right, Several) and right.kind == "steps":
            return any(self.same(item, given) for item in right.items)
        if isinstance(given, Several) and given.kind == "steps":
            return any(self.same(right, item) for item in given.items)
        if isinstance(right, Named) or isinstance(given, Named):
            return self._named(right, given)
        if isinstance(right, Intervals) or isinstance(given, Intervals):
            return self._intervals(right, given)
        if isinstance(right, Several) or isinstance(given, Several):
            return self._several(right, given)
        if isinstance(right, Ratio) or isinstance(given, Ratio):
            return self._ratio(right, given)
        if isinstance(right, Clock) or isinstance(given, Clock):
            return self._clock(right, given)
        if isinstance(right, Quantity) and isinstance(given, Quantity):
            return self._quantity(right, given)
        if isinstance(right, Grid) and isinstance(given, Grid):
            return self._grid(right.rows, given.rows)
        if isinstance(right, Quantity) and isinstance(given, Equation) and given.value is not None:
            return self._quantity(right, given.value)
        if isinstance(right, Equation) and isinstance(given, Equation):
            return proportional(right.zero, given.zero)
        if isinstance(right, Inequality) and isinstance(given, Inequality):
            return right.strict == given.strict and proportional(right.positive, given.positive, positive=True)
        return False

    def _named(self, right: Answer, given: Answer) -> bool:
        if isinstance(right, Named) and isinstance(given, Named):
            # y = 2x and f(x) = 2x are the same; y = 2 and x = 2 are not.
            if (right.label == given.label or ("(" in right.label) != ("(" in given.label)) and self.same(
                right.value, given.value
            ):
                return True
            zeros = [_as_equation(answer) for answer in (right, given)]
            return zeros[0] is not None and zeros[1] is not None and proportional(zeros[0], zeros[1])
        equation = right if isinstance(right, Equation) else given if isinstance(given, Equation) else None
        named = given if isinstance(given, Named) else right
        if equation is not None and isinstance(named, Named):
            zero = _as_equation(named)
            return zero is not None and proportional(zero, equation.zero)
        if isinstance(right, Named):
            return self.same(right.value, given)
        return isinstance(given, Named) and self.same(right, given.value)

    def _several(self, right: Answer, given: Answer) -> bool:
        if isinstance(right, Grid) or isinstance(given, Grid):
            return self._vector(right, given)
        if not (isinstance(right, Several) and isinstance(given, Several)):
            one, other = (right, given) if isinstance(right, Several) else (given, right)
            assert isinstance(one, Several)
            if Words("none") in one.items:
                return False
            return one.kind == "set" and len(one.items) == 1 and self.same(*_ordered(one.items[0], other, one is right))
        kinds = {right.kind, given.kind}
        if not self.strict:
            return self._in_any_order(right.items, given.items)
        if kinds == {"set"}:
            return self._covers(right.items, given.items) and self._covers(given.items, right.items, swapped=True)
        if kinds <= {"list", "set"}:
            return self._in_any_order(right.items, given.items)
        if kinds == {"tuple", "bracket"} or (kinds & {"tuple", "bracket"} and "set" in kinds):
            return False
        return len(right.items) == len(given.items) and all(
            map(self.same, _by_label(right.items), _by_label(given.items))
        )

    def _in_any_order(self, right: Sequence[Answer], given: Sequence[Answer]) -> bool:
        """Return whether the items can be paired. Names on one side only fix the order."""
        if len(right) != len(given):
            return False
        named = [{item.label for item in items if isinstance(item, Named)} for items in (right, given)]
        if len(right) in (len(named[0]), len(named[1])) and not (named[0] and named[1]) and len(right) > 1:
            return all(map(self.same, _by_label(right), _by_label(given)))
        # Identical items are paired first, as comparing the others takes long.
        unpaired = Counter(right) - Counter(given)
        left = list((Counter(given) - Counter(right)).elements())
        if len(left) > _MOST_COMPARED:
            return False
        for item in unpaired.elements():
            found = next((number for number, other in enumerate(left) if self.same(item, other)), None)
            if found is None:
                return False
            del left[found]
        return True

    def _covers(self, items: Sequence[Answer], others: Sequence[Answer], swapped: bool = False) -> bool:
        """Return whether each of the items is among the others."""
        return all(any(self.same(*_ordered(item, other, not swapped)) for other in others) for item in items)

    def _vector(self, right: Answer, given: Answer) -> bool:
        """Compare a matrix of one row or column with a tuple."""
        grid, several = (right, given) if isinstance(right, Grid) else (given, right)
        if not isinstance(grid, Grid) or not isinstance(several, Several) or several.kind != "tuple":
            return False
        if len(grid.rows) > 1 and len(grid.rows[0]) > 1:
            return False
        nodes = [node for row in grid.rows for node in row]
        return len(nodes) == len(several.items) and all(
            self.same(*_ordered(Quantity(node), item, grid is right))
            for node, item in zip(nodes, several.items, strict=True)
        )

    def _grid(self, right: tuple[tuple[Node, ...], ...], given: tuple[tuple[Node, ...], ...]) -> bool:
        if len(right) != len(given) or len(right[0]) != len(given[0]):
            return False
        return all(
            same_value(a, b, significant=self.significant)
            for row, other in zip(right, given, strict=True)
            for a, b in zip(row, other, strict=True)
        )

    def _intervals(self, right: Answer, given: Answer) -> bool:
        for one, other in ((right, given), (given, right)):
            if isinstance(one, Intervals) and one.positive and isinstance(other, Inequality):
                closed = one.pieces[0][1] or one.pieces[0][3]
                return other.strict != closed and proportional(one.positive, other.positive, positive=True)
        first, second = as_intervals(right), as_intervals(given)
        if first is None or second is None or (first.label and second.label and first.label != second.label):
            return False
        mine, others = _merged(first.pieces), _merged(second.pieces)
        return len(mine) == len(others) and all(
            a[1] == b[1] and a[3] == b[3] and same_value(a[0], b[0]) and same_value(a[2], b[2])
            for a, b in zip(mine, others, strict=True)
        )

    def _ratio(self, right: Answer, given: Answer) -> bool:
        parts, others = _parts(right), _parts(given)
        if parts is None or others is None or len(parts) != len(others):
            return False
        # a : b = c : d when a d = b c, without a division by zero.
        (a, *first), (c, *second) = parts, others
        return all(
            same_value(("mul", a, d), ("mul", b, c)) and not same_value(b, ("num", Fraction(0)))
            for b, d in zip(first, second, strict=True)
        )

    def _clock(self, right: Answer, given: Answer) -> bool:
        if isinstance(right, Clock) and isinstance(given, Clock):
            same_half = not (right.half and given.half) or right.half == given.half
            return (right.hours, right.minutes) == (given.hours, given.minutes) and same_half
        one, other = (right, given) if isinstance(right, Clock) else (given, right)
        assert isinstance(one, Clock)
        # A ratio that looks like a time.
        if isinstance(other, Quantity) and not one.half:
            return not other.unit and same_value(
                ("div", ("num", Fraction(one.hours)), ("num", Fraction(one.minutes))), other.node
            )
        return False

    def _quantity(self, right: Quantity, given: Quantity) -> bool:
        if given.modulus is not None:
            if right.modulus is None or not same_value(right.modulus, given.modulus):
                return False
            return _congruent(right.node, given.node, right.modulus) or self._value(
                right.node, given.node, right, given
            )
        if right.base != 10 or given.base != 10:
            if given.digits and given.base != right.base:
                return False
            digits = given.digits or _digits(given.node)
            return right.digits == digits
        if right.unit and given.unit:
            if not right.unit.measures(given.unit):
                return False
            if right.unit.scale == given.unit.scale:
                return self._value(right.node, given.node, right, given)
            return same_value(_times(right.node, right.unit.scale), _times(given.node, given.unit.scale))
        return self._one_unit(right, given)

    def _one_unit(self, right: Quantity, given: Quantity) -> bool:
        """Compare quantities of which at most one has a unit. pi degrees is not pi."""
        if (right.unit.measures(units.DEGREE) or given.unit.measures(units.DEGREE)) and _has_pi(right.node):
            return False
        a, b = right.node, given.node
        if right.unit.measures(units.PERCENT) or given.unit.measures(units.PERCENT):
            hundredth = Fraction(1, 100)
            sides = (_times(a, hundredth), b) if right.unit else (a, _times(b, hundredth))
            if same_value(*sides):
                return True
            if not right.unit and not _above_one(right.node):
                return False
        return self._value(a, b, right, given)

    def _value(self, a: Node, b: Node, right: Quantity, given: Quantity) -> bool:
        return same_value(a, b, (right.decimal, given.decimal), self.significant)


def _by_label(items: Sequence[Answer]) -> Sequence[Answer]:
    """Sort named values by their names, as in (x, y); others stay as they are."""
    return sorted(items, key=lambda item: item.label) if all(isinstance(item, Named) for item in items) else items  # type: ignore[union-attr]


def _ordered(item: Answer, other: Answer, is_right: bool) -> tuple[Answer, Answer]:
    return (item, other) if is_right else (other, item)


def _times(node: Node, factor: Fraction) -> Node:
    return node if factor == 1 else ("mul", node, ("num", factor))


def _has_pi(node: Node) -> bool:
    return node == ("const", "pi") or any(_has_pi(child) for child in node[1:] if isinstance(child, tuple))


def _above_one(node: Node) -> bool:
    try:
        return less(("num", Fraction(1)), ("fn", "abs", node))
    except (ArithmeticError, Unreadable):
        return False


def _as_equation(answer: Answer) -> Node | None:
    """Turn label = expression into an expression that is 0, where the label is a variable and the expression has others."""
    if not isinstance(answer, Named) or not isinstance(answer.value, Quantity) or answer.value.unit:
        return None
    if not answer.label.isalpha() or len(answer.label) > 1 or not symbols(answer.value.node):
        return None
    return ("add", ("sym", answer.label), ("neg", answer.value.node))


def _parts(answer: Answer) -> tuple[Node, ...] | None:
    """Return the parts of a ratio or a fraction; None for other answers."""
    if isinstance(answer, Ratio):
        return answer.parts
    if isinstance(answer, Clock) and not answer.half:
        return ("num", Fraction(answer.hours)), ("num", Fraction(answer.minutes))
    if isinstance(answer, Quantity) and not answer.unit and answer.node[0] == "div":
        return answer.node[1:]
    if isinstance(answer, Quantity) and not answer.unit and answer.node[0] == "num" and answer.node[1].denominator > 1:
        return ("num", Fraction(answer.node[1].numerator)), ("num", Fraction(answer.node[1].denominator))
    return None


def _digits(node: Node) -> str:
    """Return the digits of an integer, to be read in another base; "" for other expressions."""
    return str(node[1]) if node[0] == "num" and node[1].denominator == 1 else ""


def _congruent(a: Node, b: Node, modulus: Node) -> bool:
    try:
        values = [constant(node) for node in (a, b, modulus)]
    except (ArithmeticError, Unreadable):
        return False
    if not all(isinstance(value, Fraction) and value.denominator == 1 for value in values) or values[2] == 0:
        return False
    return (values[0] - values[1]) % values[2] == 0


def _merged(pieces: tuple[tuple[Node, bool, Node, bool], ...]) -> list[tuple[Node, bool, Node, bool]]:
    """Sort pieces and merge those that touch or overlap; pieces with variables stay as they are."""
    if any(symbols(piece[0]) | symbols(piece[2]) for piece in pieces):
        return list(pieces)
    ordered = in_order(pieces, lambda piece: piece[0])
    merged = ordered[:1]
    for low, low_in, high, high_in in ordered[1:]:
        last = merged[-1]
        touches = same_value(low, last[2]) and (low_in or last[3])
        if not (touches or less(low, last[2])):
            merged.append((low, low_in, high, high_in))
        elif less(last[2], high):
            merged[-1] = (*last[:2], high, high_in)
        elif same_value(last[2], high):
            merged[-1] = (*last[:3], last[3] or high_in)
    return merged
