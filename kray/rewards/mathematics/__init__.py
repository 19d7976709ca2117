"""The math verifier: decides whether the final answer of a response is mathematically equal to the right one.

extraction.py defines where the final answer is found, answers.py how it is parsed, equality.py, numbers.py and units.py when
two answers are equal. Parsing is strict: an answer that is not understood as a whole equals only the same text.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from kray.rewards.mathematics.answer_types import Answer, Quantity, Several, Words
from kray.rewards.mathematics.answers import read_answer
from kray.rewards.mathematics.equality import same_answer
from kray.rewards.mathematics.expressions import symbols
from kray.rewards.mathematics.extraction import Found, final_answers
from kray.rewards.mathematics.notation import WORDS_CLOSE, WORDS_OPEN, normalize, squeezed
from kray.rewards.responses import outside_thinking
from kray.rewards.verifiers import Reward

__all__ = ["final_answer", "right_answer", "verify_math"]

# A final answer longer than this and than four times the right one is wrong.
_ANSWER_CHARACTERS = 1000
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
# Python refuses to read longer integers.
_DIGITS = 4000
# Arithmetic that is left to be done: 2 + 15, 3 x 4. A fraction, a sign and an exponent are parts of a number.
_UNFINISHED = re.compile(
    r"\d\s*(?:[+*\u00d7\u00b7\u00f7]|\\(?:times|cdot|div)(?![A-Za-z])|x(?=\s*\d)|[-\u2212\u2013])\s*\(?[-+]?[\d.]"
)
_CHOICE = re.compile(r"\(?([A-J])\)?")
# A letter in parentheses or followed by a dot, and the text of that choice.
_CHOSEN = re.compile(r"(?:\(([A-Ja-j])\)|([A-J])\s*[.):])(?P<text>\s*(?![+*/^=<>]).*)", re.DOTALL | re.I)


def verify_math(
    response: str, answer: str, *, float_rounding: int = 6, strict: bool = True, finished: bool = False
) -> Reward:
    """Score the final answer of a response.

    Args:
        response: What the policy wrote.
        answer: A bare answer (72, \\frac12, 1/2, 50%), one in \\boxed{}, or a solution that ends in "#### 72".
        float_rounding: Significant digits from which on a decimal may stand for a value without a finite decimal expansion.
        strict: Whether brackets count; otherwise a list of values is equal in any brackets and order.
        finished: Where the right answer is a plain number, arithmetic that is left to be done, such as 2 + 15 for 17, is wrong.
            For questions such as "What is 2 + 15?", whose repetition would otherwise be right.

    Returns:
        1 when the final answer is equal to the right one, else 0.

    Raises:
        ValueError: The right answer is empty.
    """
    right = right_answer(answer)
    for found in final_answers(response):
        if not found.text:
            return Reward(0.0, "no answer found")
        if found.incidental and not _is_value(found.text):
            continue
        if len(found.text) > max(_ANSWER_CHARACTERS, 4 * len(right)):
            return Reward(0.0, f"a final answer of {len(found.text)} characters")
        if finished and _NUMBER.fullmatch(right) and _UNFINISHED.search(found.text.rpartition("=")[2]):
            return Reward(0.0, f"{found.text[-60:]!r} is not worked out")
        same = equal(right, found.text, float_rounding, strict)
        if not same and not (found.parts and all(equal(right, part, float_rounding, strict) for part in found.parts)):
            return Reward(0.0, f"{found.text[-60:]!r} is not {right[-60:]!r}")
    return Reward(1.0)


def _is_value(text: str) -> bool:
    """Return whether a text is a value, rather than words or an expression with a variable."""
    reading = read_answer(normalize(text))
    return not isinstance(reading, Words) and not (isinstance(reading, Quantity) and symbols(reading.node))


def right_answer(answer: str) -> str:
    """Return the final answer of a right answer.

    Args:
        answer: As `verify_math` takes it.

    Raises:
        ValueError: There is none.
    """
    right = _right_answer(answer).text
    if not right:
        raise ValueError(f"math: no right answer in {answer[:60]!r}")
    return right


# Called by verifiers.check_answer.
verify_math.check_answer = right_answer  # type: ignore[attr-defined]


@lru_cache(maxsize=4096)
def _right_answer(answer: str) -> Found:
    """Return what is in a box or behind "####", or else all of it: a right answer is not searched like a sentence.

    The text is empty where there is only punctuation and empty commands.
    """
    answer = outside_thinking(answer)
    found = final_answers(answer) if "\\boxed" in answer or "\\fbox" in answer or "####" in answer else []
    right = found[0] if found else Found(answer.strip(), False)
    blank = not re.sub(rf"[\s.,;:$()\[\]{{}}{WORDS_OPEN}{WORDS_CLOSE}]|</?answer>", "", normalize(right.text))
    return Found("", True) if blank and "\\{" not in right.text else right


def final_answer(text: str) -> tuple[str, bool]:
    """Find the final answer of a response.

    Returns:
        (its text, "" without one; whether a mark such as a box identifies it).
    """
    found = final_answers(text)[0]
    return found.text, found.marked


def equal(right: str, given: str, significant: int = 6, strict: bool = True) -> bool:
    """Return whether two final answers are equal.

    Args:
        right: Text of the right answer.
        given: Text of the answer that is judged.
        significant: As `float_rounding` of `verify_math`.
        strict: As of `verify_math`.
    """
    quick = _compare_numbers(right, given)
    if quick is not None:
        return quick
    if given == right:
        return True
    normal, (right_text, right_reading) = normalize(given), _read_right(right)
    if squeezed(normal) == squeezed(right_text):
        return True
    choice = _choice(right_text, normal)
    if choice is not None:
        return choice
    try:
        # Where the right answer has several values, the comma of 100,200 separates two.
        separate = isinstance(right_reading, Several)
        return same_answer(right_reading, read_answer(normal), significant, strict) or (
            separate and same_answer(right_reading, read_answer(normal, commas_separate=True), significant, strict)
        )
    except (ArithmeticError, ValueError, RecursionError):
        return False


@lru_cache(maxsize=4096)
def _read_right(right: str) -> tuple[str, Answer]:
    text = normalize(right)
    return text, read_answer(text)


def _compare_numbers(right: str, given: str) -> bool | None:
    """Compare two plain numbers, which most answers are; return None for anything else."""
    if not (_NUMBER.fullmatch(right) and _NUMBER.fullmatch(given)):
        return None
    right, given = right.replace(",", "").removeprefix("+"), given.replace(",", "").removeprefix("+")
    if right == given:
        return True
    if max(len(right), len(given)) > _DIGITS:
        return right == given
    if Fraction(right) == Fraction(given):
        return True
    return False if "." not in right + given else None


def _choice(right: str, given: str) -> bool | None:
    """Return whether a choice by its letter is the right one; None where the right answer is not a letter."""
    wanted = _CHOICE.fullmatch(right)
    if wanted is None:
        full = _CHOSEN.fullmatch(right)
        bare = _CHOICE.fullmatch(given)
        return None if full is None or bare is None else bare[1] == (full[1] or full[2]).upper()
    plain = given.replace(WORDS_OPEN, "").replace(WORDS_CLOSE, "").strip(" {}.")
    plain = re.sub(r"(?:option|choice|answer)\s+", "", plain, flags=re.I)
    if bare := _CHOICE.fullmatch(plain):
        return bare[1] == wanted[1]
    chosen = _CHOSEN.fullmatch(plain)
    if chosen is None or re.search(r"\(([A-J])\)", chosen["text"]):
        return None
    return (chosen[1] or chosen[2]).upper() == wanted[1]
