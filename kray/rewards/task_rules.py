"""Additional requirements on answers to reasoning_gym tasks whose scoring gives full credit to wrong ones.

A policy finds such a loophole within a few steps. These are of version 0.1.25, found by giving each task's scoring unusual
texts and the answers of other problems:

- coin_flip compares the digits that both numbers have: "0" is right for 0.375;
- decimal_arithmetic allows .001, whatever the digits of the right answer: 1.316740 is right for 1.316140;
- gsm_symbolic reads the first number without its sign: "-13" and "not 13, 14" are right for 13;
- complex_arithmetic takes the minimum of 1 and NaN as 1: "nan" is right;
- game_of_life_halting checks only that the text is not empty: any answer is right;
- puzzle24 accepts any four numbers from 1 to 10, not only the given ones, and truncates fractions: 24.5 is 24. Where the
  source's options ask for larger numbers no answer is right; for this task the rule alone decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

# Tasks whose rule alone decides what earns full credit.
RULE_DECIDES = ("puzzle24",)
# Absolute error of a probability, as in coin_flip's own scoring.
_PROBABILITY_TOLERANCE = 1e-4


def deserves_full_credit(task: str, given: str, entry: Mapping[str, Any], parse: Callable[[str], Any]) -> bool:
    """Return whether an answer with full credit deserves it; True for tasks without a rule here.

    Args:
        task: reasoning_gym's name of the task.
        given: The answer.
        entry: The task's entry.
        parse: Parses arithmetic on whole numbers without evaluating anything else; raises ValueError.
    """
    rule = _RULES.get(task)
    return rule is None or rule(given.strip(), entry, parse)


def _coin_flip(given: str, entry: Mapping[str, Any], _: Callable[[str], Any]) -> bool:
    right = Fraction(entry["answer"].replace(",", ""))
    try:
        value = Fraction(given.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return False
    return abs(value - right) <= _PROBABILITY_TOLERANCE and (value == 0) == (right == 0)


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
    # SymPy's parser raises any kind of error.
    except Exception:
        return False


_RULES: dict[str, Callable[[str, Mapping[str, Any], Callable[[str], Any]], bool]] = {
    "coin_flip": _coin_flip,
    "decimal_arithmetic": _decimal_arithmetic,
    "gsm_symbolic": _gsm_symbolic,
    "complex_arithmetic": _complex_arithmetic,
    "game_of_life_halting": _game_of_life_halting,
    "puzzle24": _puzzle24,
}
