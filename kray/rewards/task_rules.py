"""What an answer must also satisfy where a task of reasoning_gym gives full marks to wrong ones.

A policy finds such a hole within a few steps. Of version 0.1.25, found by giving each task's scoring strange texts and the
answers of other problems:
- coin_flip compares the digits that both have: "0" is right for 0.375;
- decimal_arithmetic allows .001, whatever the digits of the right answer: 1.316740 is right for 1.316140;
- gsm_symbolic reads the first number without its sign: "-13" and "not 13, 14" are right for 13;
- complex_arithmetic takes the smaller of 1 and NaN for 1: "nan" is right;
- game_of_life_halting compares whether there is a text: any answer is right;
- puzzle24 takes any four numbers from 1 to 10, not those that were asked for, and cuts fractions off: 24.5 is 24. Where the
  source's options ask for larger numbers no answer is right: here the rule alone decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

DECIDED = ("puzzle24",)  # tasks whose rule alone says what earns full marks
_PROBABILITY_APART = 1e-4  # as in coin_flip's own scoring


def fully_right(task: str, given: str, entry: Mapping[str, Any], parse: Callable[[str], Any]) -> bool:
    """Whether an answer with full marks deserves them; True for tasks without a rule here.

    Args:
        parse: reads arithmetic on whole numbers without evaluating anything else; raises ValueError.
    """
    rule = _RULES.get(task)
    return rule is None or rule(given.strip(), entry, parse)


def _coin_flip(given: str, entry: Mapping[str, Any], _: Callable[[str], Any]) -> bool:
    right = Fraction(entry["answer"].replace(",", ""))
    try:
        said = Fraction(given.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return False
    return abs(said - right) <= _PROBABILITY_APART and (said == 0) == (right == 0)


def _complex_arithmetic(given: str, _: Mapping[str, Any], __: Callable[[str], Any]) -> bool:
    return not re.search("nan|inf", given, re.IGNORECASE)


def _decimal_arithmetic(given: str, entry: Mapping[str, Any], _: Callable[[str], Any]) -> bool:
    right = Decimal(entry["answer"])
    last_digit = Decimal(1).scaleb(int(right.as_tuple().exponent))
    try:
        return abs(Decimal(given) - right) <= last_digit
    except ArithmeticError:
        return False


def _gsm_symbolic(given: str, entry: Mapping[str, Any], _: Callable[[str], Any]) -> bool:
    numbers = re.findall(r"[-\u2212]?[0-9]+(?:\.[0-9]+)?", given)
    return all(number[0] != "\u2212" and float(number) == float(entry["answer"]) for number in numbers)


def _game_of_life_halting(given: str, entry: Mapping[str, Any], _: Callable[[str], Any]) -> bool:
    return given.casefold() == str(entry["answer"]).casefold()


def _puzzle24(given: str, entry: Mapping[str, Any], parse: Callable[[str], Any]) -> bool:
    numbers = sorted(entry["metadata"]["numbers"])
    try:
        return parse(given) == 24 and sorted(map(int, re.findall(r"[0-9]+", given))) == numbers
    except Exception:  # of sympy's parser, at what the policy wrote
        return False


_RULES: dict[str, Callable[[str, Mapping[str, Any], Callable[[str], Any]], bool]] = {
    "coin_flip": _coin_flip,
    "decimal_arithmetic": _decimal_arithmetic,
    "gsm_symbolic": _gsm_symbolic,
    "complex_arithmetic": _complex_arithmetic,
    "game_of_life_halting": _game_of_life_halting,
    "puzzle24": _puzzle24,
}
