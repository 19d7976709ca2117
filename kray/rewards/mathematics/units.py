"""Units of measure, and the rules by which answers with and without them are compared.

- A unit may be left out on either side: 12 cm and 12 are the same answer, as the question fixes the unit.
- Where both sides name one, both must have the same dimensions, and values are converted: 3 km is 3000 m, not 3 m.
- Unknown units are the same when their words are, apart from a plural s: 5 apples, 1 apple.
- Degrees are a unit: 90 degrees is 90, not pi/2. So is percent, which also is its hundredth: 50 % is 50 and 0.5; where
  only the given answer has the sign, 0.5 % is not 0.5.
- Words for a scale multiply: 61 million is 61000000, not 61. Ordinal endings are ignored: 11th is 11.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


def _pairs(text: str) -> dict[str, str]:
    """Parse "name factor, name factor" into a dict."""
    return dict(pair.split() for pair in text.split(","))


_SCALES = """
    hundred 100, thousand 1e3, million 1e6, billion 1e9, trillion 1e12, quadrillion 1e15, quintillion 1e18,
    dozen 12, lakh 1e5, crore 1e7, bn 1e9, mil 1e6
"""
SCALES = {name: int(float(factor)) for name, factor in _pairs(_SCALES).items()}
_FILLER_WORDS = "approximately approx about roughly total in the a of each only exactly per"
_FILLERS = frozenset(_FILLER_WORDS.split())
# Words that may stand behind a number and are not units: comparisons, negations, numbers, operations.
_OTHER_WORDS = """
    or and not no nor neither never none than to if unless otherwise when where maybe perhaps possibly but
    except versus xor times more less most least fewer under over above below beyond short off plus minus
    negative positive mod modulo divided multiplied squared cubed doubled double twice thrice tripled triple
    halved factorial base choose power root sqrt inverse reciprocal remainder point rounded sin cos tan log ln
    exp pi cis matrix matrices mille permille percent percentage ppm decimal is are was be cannot can wrong
    incorrect false invalid impossible fails does doesn isn zero one two three four five six seven eight nine
    ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty
    sixty seventy eighty ninety half halves third thirds fourth fourths quarter quarters fifth fifths sixth
    sixths seventh sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths
    millionth millionths ones tens pair pairs googol googolplex zillion score gross grand kk binary hex
    hexadecimal octal ternary e i n x y z
"""
NO_UNIT = frozenset(_OTHER_WORDS.split())

# (dimension, exponent) -> names of units with their factors. Lengths are in metres, times in seconds and, apart from them,
# months, masses in grams, money in dollars.
_UNITS = {
    ("length", 1): """
        m 1, meter 1, metre 1, km 1000, kilometer 1000, kilometre 1000, cm 0.01, centimeter 0.01, centimetre 0.01,
        mm 0.001, millimeter 0.001, millimetre 0.001, dm 0.1, nm 1e-9, inch 0.0254, inches 0.0254, in 0.0254,
        ft 0.3048, foot 0.3048, feet 0.3048, yd 0.9144, yard 0.9144, mi 1609.344, mile 1609.344
    """,
    ("time", 1): """
        s 1, sec 1, second 1, min 60, minute 60, h 3600, hr 3600, hour 3600, day 86400, week 604800, ms 0.001,
        millisecond 0.001
    """,
    ("months", 1): "month 1, year 12, yr 12, decade 120, century 1200, centuries 1200",
    ("mass", 1): """
        g 1, gram 1, kg 1000, kilogram 1000, mg 0.001, milligram 0.001, lb 453.59237, pound 453.59237,
        oz 28.349523125, ounce 28.349523125, ton 1000000, tonne 1000000
    """,
    ("length", 3): "l 0.001, liter 0.001, litre 0.001, ml 1e-6, milliliter 1e-6, millilitre 1e-6, cc 1e-6",
    ("money", 1): "dollar 1, usd 1, buck 1, cent 0.01, penny 0.01, pennies 0.01",
    ("degree", 1): "degree 1, deg 1",
    ("radian", 1): "radian 1, rad 1",
    ("percent", 1): "percent 1, % 1",
    ("joule", 1): "j 1, joule 1, kj 1000",
    ("watt", 1): "w 1, watt 1, kw 1000",
    ("newton", 1): "n 1, newton 1",
    ("hertz", 1): "hz 1, khz 1000",
    ("volt", 1): "v 1, volt 1",
    ("unit", 1): "unit 1",
    ("fahrenheit", 1): "fahrenheit 1",
    ("celsius", 1): "celsius 1",
    ("euro", 1): "euro 1, eur 1",
    ("yen", 1): "yen 1",
    ("rupee", 1): "rupee 1, rs 1, inr 1",
}
# name -> ({dimension: exponent}, factor)
_KNOWN: dict[str, tuple[dict[str, int], Fraction]] = {
    **{
        name: ({dimension: exponent}, Fraction(factor))
        for (dimension, exponent), units in _UNITS.items()
        for name, factor in _pairs(units).items()
    },
    "mph": ({"length": 1, "time": -1}, Fraction("1609.344") / 3600),
    **{name: ({"length": 1, "time": -1}, Fraction(1000, 3600)) for name in ("kph", "kmh")},
}
# Single letters that may be units; any other single letter is a variable.
_UNIT_LETTERS = {*"mgshlLJWNV", "a"}
LETTERS = {name for name in _KNOWN if len(name) == 1}
_FACTOR = re.compile(r"\s*([a-z%][a-z%'\-]*)\s*(?:\^?\s*\{?\s*(-?[1-4])\s*\}?)?\s*")
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit; false when it has neither dimensions nor a name, which means no unit.

    Attributes:
        dimensions: (dimension, exponent) of a known unit.
        name: The words of an unknown unit.
        scale: Factor from this unit to the unit of its dimensions with factor 1.
        multiple: Factor of the words for a scale (million), whatever the unit.
    """

    dimensions: tuple[tuple[str, int], ...] = ()
    name: str = ""
    scale: Fraction = Fraction(1)
    multiple: Fraction = Fraction(1)

    def __bool__(self) -> bool:
        return bool(self.dimensions or self.name)

    def measures(self, other: Unit) -> bool:
        """Return whether values in both units can be compared once they are scaled."""
        return self.dimensions == other.dimensions and self.name == other.name


NONE = Unit()
PERCENT = Unit((("percent", 1),))
DEGREE = Unit((("degree", 1),))


@lru_cache(maxsize=4096)
def read_unit(words: str) -> Unit | None:
    """Read the words behind a number as a unit.

    Args:
        words: For instance "cm", "square inches", "m/s^2", "apples", "million dollars".

    Returns:
        The unit; None where the words are not a unit.
    """
    if set(re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", words)) - _UNIT_LETTERS:
        return None
    words = re.sub(r"[().\"]", " ", words.lower()).strip(" ,:;").replace("per cent", "percent")
    multiple = Fraction(1)
    found = []
    for word in words.split():
        if _singular(word) in SCALES:
            multiple *= SCALES[_singular(word)]
        elif word not in _FILLERS or words in ("in", "a") or words.startswith(("in^", "in ^", "in/")):
            found.append(word)
    if not found or words == "times":
        return Unit(multiple=multiple)
    known = _product(
        " ".join(found if "per" not in words.split() else [word for word in words.split() if word != "the"])
    )
    if known is not None:
        dimensions, factor = known
        return Unit(tuple(sorted((name, power) for name, power in dimensions.items() if power)), "", factor, multiple)
    if not NO_UNIT.isdisjoint(found) or any(not re.fullmatch(r"[a-z][a-z'\-]+", word) for word in found):
        return None
    return Unit(name=" ".join(map(_singular, found)), multiple=multiple)


def _product(text: str) -> tuple[dict[str, int], Fraction] | None:
    """Return dimensions and factor of a product of known units; None when one of them is not known."""
    dimensions: dict[str, int] = {}
    factor = Fraction(1)
    for number, part in enumerate(re.split(r"/|\bper\b", text)):
        sign, power = (1 if number == 0 else -1), 1
        rest = re.sub(r"\\cdot|\*", " ", part)
        while rest.strip():
            found = _FACTOR.match(rest)
            if found is None:
                return None
            name, rest = found[1], rest[found.end() :]
            if name in _POWERS:
                power = _POWERS[name]
                continue
            unit = _KNOWN.get(name) or _KNOWN.get(_singular(name))
            if unit is None:
                return None
            if found[2] and not {"length", "time", "unit"}.issuperset(unit[0]):
                return None
            exponent = sign * power * int(found[2] or 1)
            power = 1
            for dimension, one in unit[0].items():
                dimensions[dimension] = dimensions.get(dimension, 0) + one * exponent
            factor *= unit[1] ** exponent
    return dimensions, factor


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
