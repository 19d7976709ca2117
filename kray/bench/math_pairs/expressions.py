"""Answers that are an expression."""

from __future__ import annotations

import math
import random

from kray.bench.math_pairs.drawn import Drawn


def surd(rng: random.Random) -> Drawn:
    """Draw a multiple of a square root."""
    a, b = rng.randint(2, 12), rng.choice((2, 3, 5, 6, 7, 10, 11, 13))
    same = [
        f"{a}\\sqrt{{{b}}}",
        f"\\sqrt{{{a * a * b}}}",
        f"{a} \\cdot \\sqrt{{{b}}}",
        f"{a}√{b}",
        f"{a}*sqrt({b})",
        f"{a}\\times {b}^{{1/2}}",
        f"\\frac{{{a * b}}}{{\\sqrt{{{b}}}}}",
        f"\\sqrt{{{b}}} \\cdot {a}",
        f"{a * math.sqrt(b):.9f}",
        f"{a}\\,\\sqrt{{{b}}}\\text{{ cm}}",
        f"{a}\\sqrt {{{b}}}",
    ]
    different = [
        f"{a}",
        f"{b}",
        f"-{a}\\sqrt{{{b}}}",
        f"{a + 1}\\sqrt{{{b}}}",
        f"{a}\\sqrt{{{b + 1}}}",
        f"{a}\\sqrt[3]{{{b}}}",
        f"{a}+\\sqrt{{{b}}}",
        f"\\sqrt{{{a * b}}}" if a > 1 else "0",
        f"\\frac{{{a}}}{{\\sqrt{{{b}}}}}",
        f"{a * math.sqrt(b):.2f}",
        f"\\sqrt{{{b}}}",
        f"{a}{b}",
    ]
    return Drawn(f"{a}\\sqrt{{{b}}}", same, different)


def power(rng: random.Random) -> Drawn:
    """Draw an integer power."""
    a, b = rng.choice((2, 3, 5, 6, 7)), rng.randint(5, 120)
    same = [
        f"{a}^{{{b}}}",
        f"{a}^{b}",
        f"{a} \\cdot {a}^{{{b - 1}}}",
        f"{a}^{{{b - 1}+1}}",
        f"({a})^{{{b}}}",
        str(a**b),
        f"\\frac{{{a}^{{{b + 1}}}}}{{{a}}}",
    ]
    different = [
        f"{a}^{{{b + 1}}}",
        f"{a}^{{{b - 1}}}",
        f"{a + 1}^{{{b}}}",
        f"{a}^{{-{b}}}",
        f"-{a}^{{{b}}}",
        f"{a}",
        f"{b}",
        f"{a} \\cdot {b}",
        f"{b}^{{{a}}}" if b != a else "0",
        f"{a}^{{{b}}} + 1",
        str(a**b + 1),
        str(a**b)[:-1],
    ]
    return Drawn(f"{a}^{{{b}}}", same, different)


def _term(c: int, x: str, power: int) -> str:
    body = "" if power == 0 else x if power == 1 else f"{x}^{{{power}}}"
    return f"{c:+d}" if not body else f"{'-' if c < 0 else '+'}{'' if abs(c) == 1 else abs(c)}{body}"


def polynomial(rng: random.Random) -> Drawn:
    """Draw a quadratic polynomial with integer roots."""
    x = rng.choice("xynt")
    r, s = rng.sample([k for k in range(-9, 10) if k], 2)
    b, c = -(r + s), r * s
    if b == 0:
        return polynomial(rng)
    terms = [_term(1, x, 2), _term(b, x, 1), _term(c, x, 0)]

    def joined(parts: list[str]) -> str:
        return "".join(parts).removeprefix("+")

    factors = f"({x}{-r:+d})({x}{-s:+d})"
    same = [
        joined(terms),
        joined(terms[::-1]),
        joined(terms).replace("+", " + ").replace("-", " - "),
        factors,
        joined(terms).replace("^{2}", "^2"),
        joined(terms).replace(f"{x}^{{2}}", f"{x}²"),
        f"{x}({x}{b:+d}){c:+d}",
        f"f({x}) = {joined(terms)}",
    ]
    different = [
        joined([terms[0], _term(-b, x, 1), terms[2]]),
        joined([terms[0], terms[1], _term(-c, x, 0)]),
        joined([_term(-1, x, 2), *terms[1:]]),
        joined([_term(1, x, 3), *terms[1:]]),
        joined(terms[:2]),
        joined(terms[1:]),
        joined([terms[0], terms[1], _term(c + 1, x, 0)]),
        joined(terms).replace(x, "z"),
        str(c),
        joined([_term(2, x, 2), *terms[1:]]),
        f"({x}{r:+d})({x}{s:+d})",
    ]
    return Drawn(joined(terms), same, different)


def rational_function(rng: random.Random) -> Drawn:
    """Draw a quotient of linear functions."""
    a, b = rng.sample(range(1, 12), 2)
    same = [
        f"\\frac{{x+{a}}}{{x-{b}}}",
        f"(x+{a})/(x-{b})",
        f"\\frac{{{a}+x}}{{x-{b}}}",
        f"-\\frac{{x+{a}}}{{{b}-x}}",
        f"1+\\frac{{{a + b}}}{{x-{b}}}",
        f"\\frac{{2x+{2 * a}}}{{2x-{2 * b}}}",
    ]
    different = [
        f"\\frac{{x-{b}}}{{x+{a}}}",
        f"\\frac{{x-{a}}}{{x-{b}}}",
        f"\\frac{{x+{a}}}{{x+{b}}}",
        f"x+{a}/x-{b}",
        f"\\frac{{x+{a + 1}}}{{x-{b}}}",
        f"-\\frac{{x+{a}}}{{x-{b}}}",
        f"\\frac{{x^2+{a}}}{{x-{b}}}",
    ]
    return Drawn(f"\\frac{{x+{a}}}{{x-{b}}}", same, different)


def complex_number(rng: random.Random) -> Drawn:
    """Draw a complex number."""
    a, b = rng.sample(range(2, 20), 2)
    same = [
        f"{a}+{b}i",
        f"{a} + {b} i",
        f"{b}i+{a}",
        f"{a}-(-{b}i)",
        f"\\frac{{{2 * a}+{2 * b}i}}{{2}}",
        f"z = {a}+{b}i",
    ]
    different = [
        f"{a}-{b}i",
        f"-{a}+{b}i",
        f"{b}+{a}i",
        f"{a}",
        f"{b}i",
        f"{a}+{b}",
        f"{a}+{b + 1}i",
        f"({a},{b})",
        f"{a}{b}i",
    ]
    return Drawn(f"{a}+{b}i", same, different)


def pi(rng: random.Random) -> Drawn:
    """Draw a rational multiple of pi."""
    a, b = rng.choice([(p, q) for p in range(1, 12) for q in range(2, 9) if math.gcd(p, q) == 1])
    top = "\\pi" if a == 1 else f"{a}\\pi"
    same = [
        f"\\frac{{{top}}}{{{b}}}",
        f"\\frac{{{a}}}{{{b}}}\\pi",
        f"{top}/{b}",
        f"\\dfrac{{{a}π}}{{{b}}}",
        f"{a}*pi/{b}",
        f"{a * math.pi / b:.9f}",
        f"\\pi \\cdot \\frac{{{a}}}{{{b}}}",
    ]
    different = [
        f"\\frac{{{a}}}{{{b}}}",
        f"\\frac{{{b}\\pi}}{{{a}}}" if a != b else "0",
        f"-\\frac{{{top}}}{{{b}}}",
        f"\\frac{{{top}}}{{{b + 1}}}",
        f"{a * math.pi / b:.2f}",
        f"{top}",
        f"\\frac{{{top}^2}}{{{b}}}",
        f"{180 * a / b}",
        f"\\frac{{{a}}}{{{b}\\pi}}",
    ]
    return Drawn(f"\\frac{{{top}}}{{{b}}}", same, different)


def logarithm(rng: random.Random) -> Drawn:
    """Draw a sum of natural logarithms."""
    a, b = rng.sample((2, 3, 5, 7, 11), 2)
    same = [
        f"\\ln {a} + \\ln {b}",
        f"\\ln {a * b}",
        f"\\ln({a * b})",
        f"\\log {a * b}",
        f"\\ln {b} + \\ln {a}",
        f"-\\ln\\frac{{1}}{{{a * b}}}",
    ]
    different = [
        f"\\ln {a}",
        f"\\ln {a} - \\ln {b}",
        f"\\ln {a + b}" if a + b != a * b else "0",
        f"\\ln {a} \\cdot \\ln {b}",
        f"{a * b}",
        f"\\log_2 {a * b}",
        f"e^{{{a * b}}}",
    ]
    return Drawn(f"\\ln {a} + \\ln {b}", same, different)


def trigonometric(rng: random.Random) -> Drawn:
    """Draw a squared sine."""
    k = rng.randint(2, 9)
    same = [f"\\sin^2 {k}x", f"(\\sin {k}x)^2", f"\\sin^2({k}x)", f"1-\\cos^2 {k}x", f"\\sin {k}x \\cdot \\sin {k}x"]
    different = [
        f"\\cos^2 {k}x",
        f"\\sin {k}x",
        f"\\sin {k}x^2",
        f"-\\sin^2 {k}x",
        f"\\sin^2 {k + 1}x",
        f"{k}\\sin^2 x",
        f"\\sin^3 {k}x",
        f"\\sin^2 {k}y",
    ]
    return Drawn(f"\\sin^2 {k}x", same, different)
