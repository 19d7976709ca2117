"""Parse one number or expression with its unit, base or modulus."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

from kray.rewards.mathematics import units
from kray.rewards.mathematics.answer_types import Quantity
from kray.rewards.mathematics.evaluation import constant
from kray.rewards.mathematics.expressions import Node, read
from kray.rewards.mathematics.notation import WORDS_CLOSE, WORDS_OPEN
from kray.rewards.mathematics.tokens import FUNCTIONS, Unreadable
from kray.rewards.mathematics.units import Unit

_MODULUS = re.compile(r"(.*?)[\s(,]*\\(?:pmod|bmod|mod)\s*(\{[^{}]*\}|\d+|[a-z])\s*\)?", re.DOTALL)
_BASE = re.compile(r"\(?([0-9A-Fa-f]*\d[0-9A-Fa-f]*)\)?\s*_\s*(?:\{\s*(\d{1,2}|[a-z]+)\s*\}|(\d))")
_BASE_WORDS = "two three four five six seven eight nine ten"
_BASES = {word: base for base, word in enumerate(_BASE_WORDS.split(), start=2)} | {"twelve": 12, "sixteen": 16}
# Words with an exponent, and quotients and products of such; nothing else may stand behind the number.
_UNIT = rf"{WORDS_OPEN}[^{WORDS_CLOSE}]*{WORDS_CLOSE}(?:\s*\^\s*\{{?\s*-?[1-4]\s*\}}?)?"
_TAIL = re.compile(rf"(.*?)\s*({_UNIT}(?:\s*(?:/|\\cdot)?\s*{_UNIT})*)\s*", re.DOTALL)
_PREFIX = re.compile(
    rf"{WORDS_OPEN}\s*(dollars|usd|eur|euros?|inr|rs|pounds sterling|yen)\.?\s*{WORDS_CLOSE}\s*(.*)", re.I | re.DOTALL
)
_TEMPERATURE = re.compile(rf"\^\s*\{{?\s*\\circ\s*\}}?\s*{WORDS_OPEN}?\s*([FC])\s*{WORDS_CLOSE}?\s*$")
_BARE_TAIL = re.compile(
    r"(.*[\d)}.%])(\s*)([A-Za-z][A-Za-z' .\-]*(?:/\s*[A-Za-z]+)?(?:\s*\^\s*\{?[23]\}?)?)", re.DOTALL
)
_ORDINAL = re.compile(rf"(\d*)(\d)\s*\^?\s*\{{?\s*{WORDS_OPEN}?(st|nd|rd|th){WORDS_CLOSE}?\s*\}}?$")
_COMPOUND = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)\.?(?![A-Za-z0-9])")


def read_quantity(text: str) -> Quantity:
    """Parse one number or expression with its unit, base or modulus.

    Raises:
        Unreadable: A part of it is not understood.
    """
    text = text.strip()
    if found := _MODULUS.fullmatch(text):
        return Quantity(read(found[1]), modulus=read(found[2].strip("{}")))
    if found := _BASE.fullmatch(text.replace(WORDS_OPEN, "").replace(WORDS_CLOSE, "")):
        return _in_base(found[1], found[2] or found[3])
    value, unit = _without_unit(text)
    node, sign = read(value), 1
    inner = node
    while inner[0] == "neg":
        inner, sign = inner[1], -sign
    if inner[0] in ("deg", "pct") and not unit:
        unit = units.DEGREE if inner[0] == "deg" else units.PERCENT
        node = inner[1] if sign > 0 else ("neg", inner[1])
    bare = value.strip().lstrip("+- ").replace(",", "").rstrip("% ")
    if unit.multiple != 1:
        return Quantity(("mul", node, ("num", unit.multiple)), replace(unit, multiple=Fraction(1)))
    return Quantity(node, unit, bare if re.fullmatch(r"\d*\.\d+", bare) else "")


def _in_base(digits: str, base: str) -> Quantity:
    number = int(base) if base.isdigit() else _BASES.get(base)
    if number is None or not 2 <= number <= 36:
        raise Unreadable(f"base {base}")
    try:
        value = int(digits, number)
    except ValueError:
        raise Unreadable(f"{digits} in base {base}") from None
    return Quantity(("num", Fraction(value)), base=number, digits=digits.upper().lstrip("0") or "0")


def _without_unit(text: str) -> tuple[str, Unit]:
    """Split a text into what stands before the words at its end, and the unit that they name."""
    plain = text.replace(WORDS_OPEN, " ").replace(WORDS_CLOSE, " ")
    amounts = _COMPOUND.findall(plain)
    if len(amounts) > 1 and not _COMPOUND.sub("", plain).strip():
        parts = [Quantity(("num", Fraction(number)), units.read_unit(word) or units.NONE) for number, word in amounts]
        if all(part.unit and part.unit.measures(parts[0].unit) for part in parts):
            whole = compound(parts)
            return f"{constant(whole.node)}", whole.unit
    text = _ORDINAL.sub(lambda m: m[1] + m[2] if m[3] == _ordinal(m[1], m[2]) else m[0], text)
    text = _TEMPERATURE.sub(lambda m: f"{WORDS_OPEN}{'fahrenheit' if m[1] == 'F' else 'celsius'}{WORDS_CLOSE}", text)
    if found := _PREFIX.fullmatch(text):
        text = f"{found[2]}{WORDS_OPEN}{found[1]}{WORDS_CLOSE}"
    if found := _TAIL.fullmatch(text):
        words = re.sub(rf"[{WORDS_OPEN}{WORDS_CLOSE}]", " ", found[2])
        unit = units.read_unit(words)
        if unit is None or not found[1].strip():
            raise Unreadable(words)
        return found[1], unit
    if found := _BARE_TAIL.fullmatch(text):
        before, space, words = found.groups()
        first = re.findall(r"[A-Za-z]+", words)[0]
        named = units.read_unit(words)
        known = named is not None and (named.dimensions or named.multiple != 1)
        long = len(first) > 3 and first.lower() not in FUNCTIONS and bool(space)
        if known and not space and (first.lower() in units.LETTERS or first in ("in",)):
            known = False
        if known or long:
            if named is None:
                raise Unreadable(words)
            return before, named
    return text, units.NONE


def compound(items: Iterable[Quantity]) -> Quantity:
    """Add quantities of one dimension: 2 hours and 15 minutes."""
    items = list(items)
    base = items[0].unit
    node: Node = ("num", Fraction(0))
    for item in items:
        node = ("add", node, ("mul", item.node, ("num", item.unit.scale)))
    return Quantity(node, Unit(base.dimensions, base.name))


def _ordinal(tens: str, ones: str) -> str:
    """Return the ending of an ordinal number."""
    return "th" if tens.endswith("1") else {"1": "st", "2": "nd", "3": "rd"}.get(ones, "th")
