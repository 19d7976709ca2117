"""Compute the value of an expression: exactly where it is rational, else to many digits.

A value that does not exist or is too large to compute raises `Undefined`, so that no answer of a policy takes long.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

import mpmath

from kray.rewards.mathematics.expressions import Node, symbols
from kray.rewards.mathematics.tokens import Unreadable

# A Fraction, or an mpf or mpc of one of the contexts below.
Number = Any

# Digits of a first comparison, and of the one that confirms that two values are equal.
_DIGITS, _CONFIRMING_DIGITS = 50, 800
# Bits of a rational and argument of a factorial beyond which a value is not computed.
_MAX_BITS, _MAX_FACTORIAL = 200_000, 3000
# Bits of a number beyond which no exact root is computed.
_MAX_ROOT_BITS = 8192


class Undefined(ArithmeticError):
    """The expression has no value at this point, or one that is too large to compute."""


def _context(digits: int) -> Any:
    context = mpmath.MPContext()
    context.dps = digits
    return context


CONTEXTS = (_context(_DIGITS), _context(_CONFIRMING_DIGITS))
# For points with negative variables: even roots and logarithms of negative numbers have no value, nor do subexpressions.
REAL_CONTEXT = _context(_DIGITS)
REAL_CONTEXT.real_only = True


def constant(node: Node) -> Number:
    """Compute an expression without variables.

    Raises:
        Undefined: It has no value.
        Unreadable: It has variables.
    """
    if symbols(node):
        raise Unreadable("an expression with variables")
    return evaluate(node, {}, CONTEXTS[0])


def less(a: Node, b: Node) -> bool:
    """Return whether a < b.

    Raises:
        Undefined: One has no value, or a value that is not real.
        Unreadable: One has variables.
    """
    left, right = constant(a), constant(b)
    if not (is_real(left) and is_real(right)):
        raise Undefined("no real number")
    return bool(as_float(real_part(left), CONTEXTS[0]) < as_float(real_part(right), CONTEXTS[0]))


def in_order(items: Iterable[Any], lower: Callable[[Any], Node] = lambda item: item) -> list[Any]:
    """Sort items from the smallest on.

    Args:
        items: What to sort.
        lower: Gives the constant, real expression by which an item is sorted.

    Raises:
        Undefined: An expression has no real value.
        Unreadable: An expression has variables.
    """
    ordered: list[Any] = []
    for item in items:
        place = next((i for i, other in enumerate(ordered) if less(lower(item), lower(other))), len(ordered))
        ordered.insert(place, item)
    return ordered


def evaluate(node: Node, point: Mapping[str, Fraction], context: Any, log_base: float = math.e) -> Number:
    """Compute an expression.

    Args:
        node: The expression.
        point: Values of its variables.
        context: The mpmath context for irrational values.
        log_base: Base of logarithms without one.

    Returns:
        A Fraction where the value was found to be rational, else a number of the context.

    Raises:
        ArithmeticError: There is no value (division by zero), or it is too large to compute (Undefined).
    """
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind == "sym":
        return point[node[1]]
    if kind == "const":
        return {"pi": context.pi, "e": context.e, "i": context.j, "inf": context.inf}[node[1]] * context.one
    arguments = [evaluate(child, point, context, log_base) for child in node[1:] if isinstance(child, tuple)]
    if kind != "fn":
        return _OPERATORS[kind](context, *arguments)
    if node[1] == "applied":
        return _applied(context, node[2], arguments)
    if node[1] == "log" and len(arguments) == 1:
        arguments.append(Fraction(10) if log_base == 10 else context.e * 1)
    return _FUNCTIONS[node[1]](context, *arguments)


def as_float(value: Number, context: Any) -> Any:
    """Convert a value to a number of the context."""
    return context.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def is_real(value: Number) -> bool:
    """Return whether a value has no imaginary part but rounding errors."""
    return isinstance(value, Fraction) or not value.imag or bool(abs(value.imag) < abs(value.real) * 1e-40)


def real_part(value: Number) -> Number:
    """Return the real part of a value."""
    return value if isinstance(value, Fraction) else value.real


def _applied(context: Any, name: str, arguments: list[Number]) -> Number:
    """Evaluate an unknown function as a pseudo-random one, so that only equal arguments give equal values."""
    draw = random.Random(f"{name}|{len(arguments)}")
    value = context.mpf(draw.randint(1, 10**6)) / 10**6
    for argument in arguments:
        value = context.sin(value + as_float(argument, context) * draw.randint(10**5, 10**6) / 10**6 + draw.random())
    return value


def _both(operator: Callable[[Any, Any], Any]) -> Callable[..., Number]:
    """Apply an operator to two Fractions, or to two numbers of the context."""

    def apply(context: Any, a: Number, b: Number) -> Number:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return _bounded(operator(a, b))
        value = operator(as_float(a, context), as_float(b, context))
        if context.isnan(value):
            raise Undefined("not a number")
        return value

    return apply


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise Undefined("too large")
    return value


def _power(context: Any, base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator != 1:
            return _rational_root(context, base, exponent)
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if size * abs(exponent) > _MAX_BITS and abs(base) != 1 and base:
            raise Undefined("too large")
        return base ** int(exponent)
    base, exponent = as_float(base, context), as_float(exponent, context)
    if abs(exponent) > _MAX_BITS or (context.isinf(base) and exponent == 0):
        raise Undefined("too large")
    return context.power(base, exponent)


def _rational_root(context: Any, base: Fraction, exponent: Fraction) -> Number:
    """Compute base ** exponent, exactly where numerator and denominator have exact roots."""
    index = exponent.denominator
    if base < 0 and index % 2 == 0 and getattr(context, "real_only", False):
        raise Undefined("no real number")
    if base >= 0 and index <= 64 and max(base.numerator, base.denominator).bit_length() <= _MAX_ROOT_BITS:
        top, bottom = (_integer_root(part, index) for part in (base.numerator, base.denominator))
        if top is not None and bottom is not None:
            return _power(context, Fraction(top, bottom), Fraction(exponent.numerator))
    if abs(exponent) > _MAX_BITS:
        raise Undefined("too large")
    return context.power(as_float(base, context), as_float(exponent, context))


def _integer_root(value: int, index: int) -> int | None:
    """Return the integer whose power `index` is `value`; None without one."""
    low, high = 0, 1 << (value.bit_length() // index + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**index <= value else (low, middle - 1)
    return low if low**index == value else None


def _root(context: Any, value: Number, index: Number = Fraction(2)) -> Number:
    if index == 0:
        raise Undefined("a root of index 0")
    odd = isinstance(index, Fraction) and index.denominator == 1 and index % 2
    # \sqrt[3]{-8} is -2, not a complex number.
    if odd and isinstance(value, Fraction) and value < 0:
        return -_root(context, -value, index)
    return _power(context, value, 1 / index)


def _factorial(context: Any, n: Number) -> Number:
    if isinstance(n, Fraction) and n.denominator == 1:
        if not 0 <= n <= _MAX_FACTORIAL:
            raise Undefined("a factorial of a negative or a large number")
        return Fraction(math.factorial(int(n)))
    if abs(n) > _MAX_FACTORIAL or context.dps > _DIGITS:
        raise Undefined("the gamma function of a large number, or to many digits")
    return context.factorial(as_float(n, context))


def _binomial(context: Any, n: Number, k: Number) -> Number:
    if all(isinstance(part, Fraction) and part.denominator == 1 for part in (n, k)):
        if not (0 <= k <= _MAX_FACTORIAL and 0 <= n <= 10 * _MAX_FACTORIAL):
            raise Undefined("a binomial coefficient that is too large")
        return Fraction(math.comb(int(n), int(k)))
    return context.binomial(as_float(n, context), as_float(k, context))


def _integers(operator: Callable[..., int]) -> Callable[..., Number]:
    def apply(context: Any, *values: Number) -> Number:
        if not all(isinstance(value, Fraction) and value.denominator == 1 for value in values):
            raise Undefined("no integers")
        return Fraction(operator(*(int(value) for value in values)))

    return apply


def _step(operator: Callable[[Any], int]) -> Callable[..., Number]:
    """Apply floor or ceil to a real value."""

    def apply(context: Any, value: Number) -> Number:
        if isinstance(value, Fraction):
            return Fraction(operator(value))
        if not is_real(value) or context.isinf(value.real):
            raise Undefined("no real number")
        return Fraction(int(getattr(context, operator.__name__)(value.real)))

    return apply


def _extreme(operator: Callable[..., Any]) -> Callable[..., Number]:
    def apply(context: Any, *values: Number) -> Number:
        if not all(is_real(value) for value in values):
            raise Undefined("no real numbers")
        return operator(values, key=lambda value: as_float(real_part(value), context))

    return apply


def _of(name: str) -> Callable[..., Number]:
    """Apply a function of mpmath; it is undefined where it is infinite, and for huge arguments, which take too long."""

    def apply(context: Any, value: Number) -> Number:
        value = as_float(value, context)
        if not abs(value) < 1e6:
            raise Undefined("too large")
        result = getattr(context, name)(value)
        if context.isnan(result) or context.isinf(result):
            raise Undefined("not a number")
        return result

    return apply


def _logarithm(context: Any, value: Number, base: Number) -> Number:
    if getattr(context, "real_only", False) and is_real(value) and real_part(value) < 0:
        raise Undefined("no real number")
    if value == 0 or base in (0, 1):
        raise Undefined("a logarithm of 0, or to base 0 or 1")
    if isinstance(value, Fraction) and isinstance(base, Fraction) and value > 0 and base > 0:
        guess = round(float(context.log(as_float(value, context)) / context.log(as_float(base, context))) * 12)
        exponent = Fraction(guess, 12)
        if abs(exponent) < 500 and _power(context, value, Fraction(exponent.denominator)) == _power(
            context, base, Fraction(exponent.numerator)
        ):
            return exponent
    return context.log(as_float(value, context)) / context.log(as_float(base, context))


_OPERATORS: dict[str, Callable[..., Number]] = {
    "add": _both(lambda a, b: a + b),
    "mul": _both(lambda a, b: a * b),
    "div": _both(lambda a, b: a / b),
    "pow": _power,
    "neg": lambda context, a: -a,
    "fact": _factorial,
    "pct": lambda context, a: a / 100,
    "deg": lambda context, a: as_float(a, context) * context.pi / 180,
}
_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "root": _root,
    "cbrt": lambda context, a: _root(context, a, Fraction(3)),
    "abs": lambda context, a: abs(a),
    "floor": _step(math.floor),
    "ceil": _step(math.ceil),
    "binom": _binomial,
    "gcd": _integers(math.gcd),
    "lcm": _integers(math.lcm),
    "max": _extreme(max),
    "min": _extreme(min),
    "exp": lambda context, a: _power(context, context.e * 1, a),
    "ln": lambda context, a: _logarithm(context, a, context.e * 1),
    "lg": lambda context, a: _logarithm(context, a, Fraction(10)),
    "log": _logarithm,
    "cis": lambda context, a: context.expj(as_float(a, context)),
    "arcsin": _of("asin"),
    "arccos": _of("acos"),
    "arctan": _of("atan"),
    **{name: _of(name) for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth")},
}
