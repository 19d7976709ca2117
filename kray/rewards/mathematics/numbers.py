"""Compare the values of two expressions.

Rational values are compared exactly. Others are computed to many digits by mpmath, so that no difference is lost to
rounding. Expressions with variables are evaluated at several fixed points: rational functions that agree there are equal (by
the Schwartz-Zippel lemma), and so are others, except for coincidences that do not occur in practice.

A number written with a decimal point is exact, with one exception: with at least `significant` digits it may also stand for
a value that it rounds, to a relative 10^-significant: one without a finite decimal expansion, or a longer decimal.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath

from kray.rewards.mathematics.evaluation import CONTEXTS, REAL_CONTEXT, Number, as_float, evaluate, is_real, real_part
from kray.rewards.mathematics.expressions import Node, symbols

# Points at which expressions with variables are compared, and at how many of them both must be defined.
_POINTS, _ENOUGH = 12, 2


def same_value(a: Node, b: Node, decimals: tuple[str, str] = ("", ""), significant: int = 6) -> bool:
    """Return whether two expressions are equal wherever both are defined.

    Args:
        a: An expression.
        b: Another expression.
        decimals: Digits of both where they are single numbers in decimal notation, else "".
        significant: Digits from which on a decimal may stand for a value without a finite decimal expansion.
    """
    if a == b:
        return True
    if a[0] == b[0] == "num" and not any(decimals):
        return a[1] == b[1]
    names = sorted(symbols(a) | symbols(b))
    # log without a base may be the natural or the decimal logarithm; it must be the same on both sides.
    for log_base in (math.e, 10) if _has_plain_log(a) or _has_plain_log(b) else (math.e,):
        if names:
            same = _same_at_points(a, b, names, log_base)
        else:
            same = _same_constant(a, b, decimals, significant, log_base)
        if same:
            return True
    return False


def proportional(a: Node, b: Node, positive: bool = False) -> bool:
    """Return whether a is a constant multiple of b, other than 0.

    Args:
        a: An expression.
        b: Another expression.
        positive: Whether the constant must be positive.
    """
    names = sorted(symbols(a) | symbols(b))
    ratio: Number = None
    seen = 0
    for number in range(_POINTS):
        values = _values_at((a, b), _point(names, number), CONTEXTS[0], math.e)
        if values is None or values[1] == 0 or values[0] == 0:
            if values is not None and (values[0] == 0) != (values[1] == 0):
                return False
            continue
        if not all(isinstance(value, Fraction) for value in values):
            values = [as_float(value, CONTEXTS[0]) for value in values]
        now = values[0] / values[1]
        if ratio is not None and not _close(now, ratio, CONTEXTS[0]):
            return False
        ratio, seen = now, seen + 1
    if seen < _ENOUGH:
        return False
    return not positive or (is_real(ratio) and real_part(ratio) > 0)


def _same_constant(a: Node, b: Node, decimals: tuple[str, str], significant: int, log_base: float) -> bool:
    values = _values_at((a, b), {}, CONTEXTS[0], log_base)
    if values is None:
        return False
    x, y = values
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y or _decimal_for(x, y, decimals, significant)
    for decimal, other in ((decimals[0], y), (decimals[1], x)):
        if _long_decimal(decimal, significant) and not isinstance(other, Fraction):
            gap = abs(as_float(x, CONTEXTS[0]) - as_float(y, CONTEXTS[0]))
            place = CONTEXTS[0].mpf(10) ** -len(decimal.partition(".")[2])
            return bool(gap < place) and _relative(x, y) <= mpmath.mpf(10) ** -significant
    if not _close(x, y, CONTEXTS[0]):
        return False
    confirmed = _values_at((a, b), {}, CONTEXTS[1], log_base)
    return confirmed is not None and _close(confirmed[0], confirmed[1], CONTEXTS[1])


def _decimal_for(x: Fraction, y: Fraction, decimals: tuple[str, str], significant: int) -> bool:
    """Return whether one rational is a decimal that stands for the other, by the rule in the module's docstring."""
    long = [_long_decimal(text, significant) for text in decimals]
    if all(long):
        places = min(len(text.partition(".")[2]) for text in decimals)
        return abs(x - y) * 10**significant <= max(abs(x), abs(y)) and round(x, places) == round(y, places)
    if not any(long):
        return False
    decimal, other = (decimals[0], y) if long[0] else (decimals[1], x)
    rounds = abs(x - y) * 10 ** len(decimal.partition(".")[2]) < 1
    return rounds and not _terminates(other) and abs(x - y) * 10**significant <= max(abs(x), abs(y))


def _long_decimal(text: str, significant: int) -> bool:
    """Return whether a decimal has enough significant digits to stand for a value that it approximates."""
    return "." in text and len(text.replace(".", "").lstrip("0")) >= significant


def _terminates(value: Fraction) -> bool:
    """Return whether a rational has a finite decimal expansion."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _same_at_points(a: Node, b: Node, names: list[str], log_base: float) -> bool:
    seen = 0
    for number in range(_POINTS):
        # sqrt(1/n) and 1/sqrt(n) differ for negative n, which is not intended; sqrt(x^2) and x differ for real numbers.
        context = REAL_CONTEXT if number % 2 else CONTEXTS[0]
        values = _values_at((a, b), _point(names, number), context, log_base)
        if values is None:
            continue
        x, y = values
        if number % 2 and not (is_real(x) and is_real(y)):
            continue
        if not _close(x, y, CONTEXTS[0]):
            return False
        seen += 1
    return seen >= _ENOUGH


@lru_cache(maxsize=4096)
def _coordinate(name: str, number: int) -> Fraction:
    """Return a variable's value at a point: in turn integers, negative fractions, fractions, and fractions of both signs."""
    draw = random.Random(f"{name}|{number}")
    if number % 4 == 0:
        return Fraction(draw.randint(2, 13))
    value = Fraction(draw.randint(5, 60), draw.choice((7, 11, 13, 17)))
    return value if number % 4 == 2 else -value if number % 4 == 1 else value * draw.choice((-1, 1))


def _point(names: list[str], number: int) -> dict[str, Fraction]:
    return {name: _coordinate(name, number) for name in names}


def _values_at(
    nodes: tuple[Node, ...], point: Mapping[str, Fraction], context: Any, log_base: float
) -> list[Number] | None:
    """Return the value of each expression; None when one has none."""
    try:
        return [evaluate(node, point, context, log_base) for node in nodes]
    except (ArithmeticError, ValueError, mpmath.libmp.NoConvergence):
        return None


def _close(x: Number, y: Number, context: Any) -> bool:
    """Return whether values are equal: exact ones exactly, others except for the last digits of the context."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    x, y = as_float(x, context), as_float(y, context)
    if context.isinf(x) or context.isinf(y):
        return bool(x == y)
    return bool(abs(x - y) <= max(abs(x), abs(y)) * context.mpf(10) ** (10 - context.dps))


def _relative(x: Number, y: Number) -> Any:
    x, y = as_float(x, CONTEXTS[0]), as_float(y, CONTEXTS[0])
    largest = max(abs(x), abs(y))
    return abs(x - y) / largest if largest else largest


def _has_plain_log(node: Node) -> bool:
    if node[:2] == ("fn", "log") and len(node) == 3:
        return True
    return any(_has_plain_log(child) for child in node[1:] if isinstance(child, tuple))
