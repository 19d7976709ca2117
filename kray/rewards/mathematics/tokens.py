"""Split normalized text into the tokens of an expression."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

# Digits of a number; Python refuses to read longer integers.
_DIGITS = 4000
# Largest exponent in scientific notation.
_MAX_EXPONENT = 4000

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>
        (?P<plain>(?=[\d.])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d*)?)
        (?:\\(?:overline|bar|dot)\s*(?:\{\s*(?P<cycle>\d+)\s*\}|(?P<digit>\d))|(?P<exponent>[eE][-+]?\d+(?![\d.]))?)
    )
    |(?P<command>\\(?:[A-Za-z]+|.))
    |(?P<letters>[A-Za-z]+)
    |(?P<symbol>\S)
    )""",
    re.VERBOSE | re.DOTALL,
)
CONSTANTS = {"pi": "pi", "e": "e", "i": "i", "infty": "inf", "infinity": "inf", "inf": "inf"}
_FUNCTION_NAMES = """
    sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan asin acos atan ln log lg exp sqrt cbrt abs
    floor ceil gcd lcm max min cis
"""
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
# Letters of the longest run that is a product of variables; longer runs are words, and so are these.
_PRODUCT_LETTERS = 4
_WORDS = frozenset(("not", "no", "nor", "but", "any", "all", "the", "for", "if", "is", "at", "yes"))


class Unreadable(ValueError):
    """The text is not an expression of the supported kinds."""


class Token(NamedTuple):
    """A token.

    Attributes:
        text: As written.
        value: Value of a number, else None.
    """

    text: str
    value: Fraction | None = None


END = Token("")


def tokenize(text: str) -> list[Token]:
    """Split normalized text into tokens.

    Raises:
        Unreadable: A number has too many digits, or letters form a word.
    """
    tokens: list[Token] = []
    position, text = 0, text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise Unreadable(text[position : position + 20])
        position = found.end()
        if found["number"]:
            tokens.append(_number(found))
        elif found["letters"]:
            tokens += _letters(found["letters"])
        else:
            tokens.append(Token(found["command"] or found["symbol"]))
    return tokens


def _number(found: re.Match[str]) -> Token:
    plain = found["plain"].replace(",", "")
    exponent = found["exponent"] or ""
    cycle = found["cycle"] or found["digit"]
    if (plain == "." and not cycle) or len(plain) > _DIGITS or (exponent and abs(int(exponent[1:])) > _MAX_EXPONENT):
        raise Unreadable("no number, or one of too many digits")
    value = Fraction((plain.rstrip(".") or "0") + exponent)
    if cycle:
        if "." not in plain:
            raise Unreadable("a repeating decimal without a point")
        value += Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(plain.partition(".")[2]))
    return Token(found["number"], value)


def _letters(word: str) -> list[Token]:
    """Return one token for the name of a function, constant or figure (ABC), else one for each letter of a product."""
    if word.isupper() and len(word) > 1:
        return [Token(word)]
    if word.lower() in FUNCTIONS or (len(word) > 1 and word.lower() in CONSTANTS):
        return [Token("\\" + word.lower())]
    if word.lower() in _WORDS or len(word) > _PRODUCT_LETTERS:
        raise Unreadable(word)
    return [Token(letter) for letter in word]
