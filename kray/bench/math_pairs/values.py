"""Answers that are one number."""

from __future__ import annotations

import math
import random
from fractions import Fraction

from kray.bench.math_pairs.drawn import Drawn


def integer(rng: random.Random) -> Drawn:
    """Draw an integer."""
    n = rng.choice((rng.randint(2, 99), rng.randint(1000, 9_999_999))) * rng.choice((1, 1, 1, -1))
    commas = f"{n:,}"
    same = [
        str(n),
        commas,
        commas.replace(",", "{,}"),
        commas.replace(",", "\\,"),
        commas.replace(",", " "),
        f"{n}.0",
        f"{n}.",
        f"\\text{{{n}}}",
        f"\\mathbf{{{n}}}",
        f"x = {n}",
        f"n={n}",
        f"\\frac{{{3 * n}}}{{3}}",
        f"{n - 7} + 7",
        f"{n} \\text{{ apples}}",
        f"{n}\\text{{ cm}}",
        str(n).replace("-", "−"),
        f"\\left({n}\\right)",
        f"{n / 10 ** (len(str(abs(n))) - 1)} \\times 10^{{{len(str(abs(n))) - 1}}}",
    ]
    place = rng.randrange(len(digits := str(abs(n))))
    changed = digits[:place] + str((int(digits[place]) + rng.randint(1, 9)) % 10) + digits[place + 1 :]
    different = [
        str(-n),
        digits and f"{'-' if n < 0 else ''}{changed}",
        f"{n}0",
        f"{n}.5",
        f"{n}\\pi",
        f"{n}i",
        f"{n}x",
        f"\\frac{{1}}{{{n}}}",
        f"{n}, {n + 1}",
        f"{n} \\text{{ or }} {n + 1}",
        f"({n}, {n})",
        f"x > {n}",
        f"x \\ne {n}",
        f"{n} \\text{{ million}}",
        f"{n}_{{12}}",
        f"({n})^2",
        f"{n} \\times 10^2",
        f"\\pm {abs(n)}",
        f"\\sin {n}",
        f"({n})!" if n > 2 else "0",
        f"{n} + i",
        f"{n} \\pmod{{97}}",
        f"{n + 1} - {n}",
        f"{n} \\approx {n + 1}",
        f"{n} = {n + 1}",
        f"{n + 1} = {n}",
        f"{n}:{abs(n) + 1}",
        f"[{n}, {n + 1}]",
        f"\\sqrt{{{n}}}",
        f"2^{{{n}}}",
        f"{n} \\to {n + 1}",
    ]
    return Drawn(str(n), same, different)


def fraction(rng: random.Random) -> Drawn:
    """Draw a fraction."""
    b = rng.randint(2, 40)
    a = rng.choice([k for k in range(1, 90) if math.gcd(k, b) == 1 and k != b])
    sign, k = rng.choice(("", "-")), rng.randint(2, 9)
    same = [
        f"{sign}\\frac{{{a}}}{{{b}}}",
        f"{sign}\\dfrac{{{a}}}{{{b}}}",
        f"{sign}\\tfrac{{{a}}}{{{b}}}",
        f"{sign}{a}/{b}",
        f"{sign}{a} \\div {b}",
        f"{sign}\\frac{{{k * a}}}{{{k * b}}}",
        f"\\frac{{{sign}{a}}}{{{b}}}",
        f"{sign}\\left(\\frac{{{a}}}{{{b}}}\\right)",
        f"{sign}{a}⁄{b}",
        f"{sign}\\frac{{{a}}}{{{b}}} \\text{{ miles}}",
        f"p = {sign}\\frac{{{a}}}{{{b}}}",
    ]
    if a > b:
        same += [f"{sign}{a // b}\\frac{{{a % b}}}{{{b}}}", f"{sign}{a // b} {a % b}/{b}"]
    if b in (2, 4, 5, 8, 10, 16, 20, 25, 32, 40):
        same += [sign + f"{a / b:.6f}".rstrip("0"), f"{sign}{a * 100 / b:.6f}".rstrip("0").rstrip(".") + "\\%"]
    other = "" if sign else "-"
    different = [
        f"{other}\\frac{{{a}}}{{{b}}}",
        f"{sign}\\frac{{{b}}}{{{a}}}",
        f"{sign}\\frac{{{a + 1}}}{{{b}}}",
        f"{sign}\\frac{{{a}}}{{{b + 1}}}",
        f"{sign}{a}",
        f"{sign}{a}{b}",
        f"{sign}\\frac{{{a}}}{{{b}}}\\pi",
        f"{sign}\\frac{{{a}}}{{{b}^2}}",
        f"{sign}\\sqrt{{\\frac{{{a}}}{{{b}}}}}",
        f"{sign}{a / b:.2f}9",
        f"({sign}{a}, {b})",
        f"{sign}\\frac{{{a}}}{{{b}}} + 1",
        f"\\binom{{{a + 50}}}{{{b}}}",
    ]
    return Drawn(f"{sign}\\frac{{{a}}}{{{b}}}", same, different)


def decimal(rng: random.Random) -> Drawn:
    """Draw a decimal number."""
    places = rng.randint(1, 4)
    n = rng.randint(10**places + 1, 10 ** (places + 2))
    n += n % 10 == 0
    text = f"{n // 10**places}.{n % 10**places:0{places}d}"
    same = [
        text,
        f"{text}0",
        f"\\frac{{{n}}}{{{10**places}}}",
        f"{n}/{10**places}",
        f"{n} \\times 10^{{-{places}}}",
        f"{n}e-{places}",
        f"\\${text}",
        f"{text}\\text{{ kg}}",
    ]
    different = [
        f"-{text}",
        text.replace(".", ""),
        f"{n}",
        f"{text[:-1]}{(int(text[-1]) + 1) % 10}",
        f"{text}7",
        text.replace(".", ","),
        f"{text}^2",
        text.split(".")[0],
        f"{n} \\times 10^{{{places}}}",
    ]
    return Drawn(text, same, different)


def scientific(rng: random.Random) -> Drawn:
    """Draw a number in scientific notation."""
    m, e = rng.randint(11, 99), rng.randint(-9, 12)
    m += m % 10 == 0
    lead = f"{m // 10}.{m % 10}"
    same = [
        f"{lead} \\times 10^{{{e}}}",
        f"{lead} \\cdot 10^{{{e}}}",
        f"{lead}×10^{{{e}}}",
        f"{lead}e{e}",
        f"{m} \\times 10^{{{e - 1}}}",
        f"10^{{{e}}} \\times {lead}",
    ]
    different = [
        f"{lead} \\times 10^{{{e + 1}}}",
        f"{lead} \\times 10^{{{-e or 1}}}",
        f"-{lead} \\times 10^{{{e}}}",
        "10",
        f"{m + 1} \\times 10^{{{e - 1}}}",
    ]
    if e:
        different += [lead, f"{lead}^{{{e}}}"]
    return Drawn(f"{lead} \\times 10^{{{e}}}", same, different)


def percent(rng: random.Random) -> Drawn:
    """Draw a percentage."""
    n = rng.randint(2, 99)
    same = [
        f"{n}\\%",
        f"{n}%",
        f"{n}",
        f"{n} \\text{{ percent}}",
        f"\\frac{{{n}}}{{100}}",
        str(Fraction(n, 100)),
        f"{n / 100}",
        f"{n}.0\\%",
    ]
    different = [
        f"{n + 1}\\%",
        f"-{n}\\%",
        f"{n}0\\%",
        f"{n / 1000}",
        f"{n}\\text{{ cm}}",
        f"{n}\\% \\text{{ of }} 200",
        f"{n}\\% + 1",
    ]
    return Drawn(f"{n}\\%", same, different)


def measure(rng: random.Random) -> Drawn:
    """Draw a length, mass or duration with its unit."""
    n = rng.randint(2, 200)
    unit, worth, smaller, wrong = rng.choice(
        (
            ("km", 1000, "m", "cm"),
            ("kg", 1000, "g", "mg"),
            ("hours", 60, "minutes", "seconds"),
            ("m", 100, "cm", "km"),
            ("feet", 12, "inches", "yards"),
        )
    )
    same = [
        f"{n}\\text{{ {unit}}}",
        f"{n}",
        f"{n} \\mathrm{{~{unit}}}",
        f"{n}\\ \\text{{{unit}}}",
        f"{n * worth}\\text{{ {smaller}}}",
        f"{n}.0 \\text{{ {unit}}}",
        f"\\text{{{n} {unit}}}",
    ]
    different = [
        f"{n}\\text{{ {smaller}}}",
        f"{n}\\text{{ {wrong}}}",
        f"{n + 1}\\text{{ {unit}}}",
        f"{n * worth}",
        f"-{n}\\text{{ {unit}}}",
        f"{n}\\text{{ {unit}}}^2",
        f"{n}\\text{{ apples}}",
        f"{n}\\text{{ {unit}}} + 1",
    ]
    return Drawn(f"{n}\\text{{ {unit}}}", same, different)


def degrees(rng: random.Random) -> Drawn:
    """Draw an angle in degrees."""
    n = rng.choice((15, 30, 36, 45, 60, 72, 75, 90, 120, 135))
    same = [f"{n}^\\circ", f"{n}^{{\\circ}}", f"{n}°", f"{n}", f"{n} \\text{{ degrees}}", f"\\angle ABC = {n}^\\circ"]
    different = [
        f"{n + 1}^\\circ",
        f"\\frac{{{n}\\pi}}{{180}}",
        f"-{n}^\\circ",
        f"{180 - n}^\\circ" if n != 90 else "91",
        f"{n}\\pi",
        f"\\sin {n}^\\circ",
        f"{n}'",
    ]
    return Drawn(f"{n}^\\circ", same, different)


def numeral(rng: random.Random) -> Drawn:
    """Draw a numeral in another base."""
    base = rng.randint(3, 9)
    digits = str(rng.randint(1, base - 1)) + "".join(str(rng.randint(0, base - 1)) for _ in range(rng.randint(2, 4)))
    same = [
        f"{digits}_{base}",
        f"{digits}_{{{base}}}",
        digits,
        f"{digits}_{{\\text{{{['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine'][base]}}}}}",
    ]
    other = digits[:-1] + str((int(digits[-1]) + 1) % base)
    different = [
        f"{digits}_{{{base + 1}}}",
        f"{other}_{base}",
        str(int(digits, base)),
        f"{digits}0_{base}",
        f"{digits[::-1]}_{base}" if digits != digits[::-1] else "1",
        f"-{digits}_{base}",
    ]
    return Drawn(f"{digits}_{base}", same, different)


def residue(rng: random.Random) -> Drawn:
    """Draw a residue class."""
    m = rng.randint(7, 40)
    r = rng.randint(1, m - 1)
    same = [f"{r} \\pmod{{{m}}}", f"{r}", f"{r + m} \\pmod{{{m}}}", f"x \\equiv {r} \\pmod{{{m}}}", f"{r} \\bmod {m}"]
    different = [f"{r} \\pmod{{{m + 1}}}", f"{r + 1} \\pmod{{{m}}}", f"{m}", f"{r + m + 1} \\pmod{{{m}}}"]
    return Drawn(f"{r} \\pmod{{{m}}}", same, [text for text in different if text != f"{r}"])
