"""The math verifier: is the final answer of a response mathematically equal to the right one?

Finding the final answer: the last \\boxed{...}; else what follows the last "####" (GSM8K); else the last expression or
number that math-verify finds. Comparing: integers by value, everything else by math-verify (sympy).

math-verify's own time-outs use signal.alarm, which fails off the main thread; they are switched off here, and the
Scorer's process deadline takes their place. An unevaluated "48+24" counts as equal to 72, as it does in math-verify.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from typing import Any

import math_verify

from kray.rewards.verifiers import Reward

# It warns about every parse without a time-out and every expression that it cannot read: nothing a person can act on.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_COMMAS = re.compile(r"[+-]?\d+(?:,\d+)+(?:\.\d+)?")  # of a list, or misplaced
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
_DIGITS = 4000  # Python refuses to read longer integers
_ANSWER_CHARACTERS = (
    1000  # a final answer in \boxed{} or after #### that is longer, and four times the right one, is none
)
_TAIL_CHARACTERS = 4000  # an answer without a mark is looked for at the end; long texts are slow to search
_LINE_CHARACTERS = 200  # a bare response up to this long may be an expression as a whole


def verify_math(response: str, answer: str, *, float_rounding: int = 6, strict: bool = True) -> Reward:
    """1 when the response's final answer equals the right one, else 0.

    answer: a bare answer (72, \\frac12, 1/2, 50%), one in \\boxed{}, or a solution that ends in "#### 72".
    float_rounding: decimals that count; strict: variables, sets and intervals must match as written (see math_verify.verify).
    Raises ValueError when the right answer is empty.
    """
    right = right_answer(answer)
    given, marked = final_answer(response)
    if not given:
        return Reward(0.0, "no answer found")
    detail = f"{given[-60:]!r} is not {right[-60:]!r}"
    quick = _compare_numbers(given, right)
    if quick is not None:
        return Reward(float(quick), "" if quick else detail)
    if given == right:
        return Reward(1.0)
    if marked and len(given) > max(_ANSWER_CHARACTERS, 4 * len(right)):
        return Reward(0.0, f"a final answer of {len(given)} characters")
    rights = _parse(right, marked=True)
    try:
        same = any(
            _equal(gold, candidate, float_rounding, strict) for candidate in _parse(given, marked) for gold in rights
        )
    except Exception as error:  # of sympy or its parser, at what the policy wrote: wrong, not a failure of the data
        return Reward(0.0, f"{detail}: {type(error).__name__}")
    return Reward(1.0) if same else Reward(0.0, detail)


def right_answer(answer: str) -> str:
    """The final answer of a right answer. Raises ValueError when there is none."""
    right, _ = final_answer(answer)
    if not right:
        raise ValueError(f"math: no right answer in {answer[:60]!r}")
    return right


verify_math.check_answer = right_answer  # type: ignore[attr-defined]  # see verifiers.check_answer


def final_answer(text: str) -> tuple[str, bool]:
    """(the part of a text that is its final answer, whether a mark set it apart); ("", True) for an empty \\boxed{}."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return _clean(boxed), True
    _, hashes, after = text.rpartition("####")
    if hashes:
        after = after.strip()
        return _clean(after.splitlines()[0]) if after else "", True
    return _clean(text[-_TAIL_CHARACTERS:]), False


def _last_boxed(text: str) -> str | None:
    """What the last complete \\boxed{...} or \\fbox{...} holds; None without one. Linear in the text's length."""
    open_braces: list[int] = []  # where what a brace holds begins; -1 for braces of other things
    found: tuple[int, int] | None = None
    for mark in _BRACES.finditer(text):
        if mark.group() != "}":
            open_braces.append(mark.end() if len(mark.group()) > 1 else -1)
        elif open_braces and (start := open_braces.pop()) >= 0 and (found is None or start > found[0]):
            found = (start, mark.start())
    return None if found is None else text[slice(*found)]


def _clean(text: str) -> str:
    """Without outer spaces, dollar signs around it and a full stop at the end."""
    text = text.strip().replace("\\$", "$")
    for fence in ("$$", "$"):
        if len(text) > 2 * len(fence) and text.startswith(fence) and text.endswith(fence):
            text = text[len(fence) : -len(fence)].strip()
    return text.removesuffix(".").rstrip()


def _compare_numbers(given: str, right: str) -> bool | None:
    """Equality of two plain numbers; None when that is for sympy to say.

    Two different decimals may still agree after rounding, so only integers are ever called unequal here.
    """
    given, right = (text.removeprefix("$").strip() for text in (given, right))
    if not _NUMBER.fullmatch(right):
        return None
    if not _NUMBER.fullmatch(given):
        return False if _COMMAS.fullmatch(given) else None  # math-verify would read "2,1251" as 2,125
    if max(len(given), len(right)) > _DIGITS:
        return given.replace(",", "") == right.replace(",", "")
    numbers = [Fraction(text.replace(",", "")) for text in (given, right)]
    if numbers[0] == numbers[1]:
        return True
    return False if numbers[0].denominator == numbers[1].denominator == 1 else None


def _parse(text: str, marked: bool) -> list[list[Any]]:
    """Readings of a final answer: as it stands, and as LaTeX when it can be one expression as a whole.

    LaTeX without dollar signs is not seen by math-verify ("\\frac12", "x^2+1", "(1,2)").
    """
    forms = [text]
    bare = text.strip("$").strip()
    if marked or ("\n" not in text and len(text) <= _LINE_CHARACTERS):
        forms.append(f"${bare}$")
    readings = (math_verify.parse(form, parsing_timeout=None) for form in forms)
    return [reading for reading in readings if reading]


def _equal(gold: list[Any], candidate: list[Any], float_rounding: int, strict: bool) -> bool:
    return math_verify.verify(gold, candidate, float_rounding=float_rounding, strict=strict, timeout_seconds=None)
