"""Arithmetic prompts and responses as people write them.

Prompts of kray/prompts/arithmetic.py hold every number with its least significant digit first: "26-35=" asks for 62 - 53,
and "90" is the answer 9. This is the inverse of that form, for tables and logs; the policy never reads it.
"""

from __future__ import annotations

import re

from kray.prompts.arithmetic import KINDS
from kray.records import Prompt

_PROBLEM = re.compile(r"\d+(?:[-+*]\d+)+=")
_NUMBER = re.compile(r"\d+")
_LAST_NUMBER = re.compile(r"\d+$")
_OPERATOR = re.compile(r"([-+*])")


def plain_problem(text: str) -> str:
    """Return a problem as people write it.

    Args:
        text: Numbers with their least significant digit first, such as "26-35=".

    Returns:
        Such as "62 - 53".
    """
    return _OPERATOR.sub(r" \1 ", _NUMBER.sub(lambda digits: plain_number(digits.group()), text.removesuffix("=")))


def plain_number(digits: str) -> str:
    """Return a number whose least significant digit comes first as people write it, without leading zeros."""
    return str(int(digits[::-1]))


def is_arithmetic(prompt: Prompt) -> bool:
    """Return whether the prompt is a problem of an arithmetic source."""
    known = prompt.source == "arithmetic" and prompt.metadata.get("kind") in KINDS
    return known and prompt.text is not None and _PROBLEM.fullmatch(prompt.text) is not None


def problem_meaning(prompt: Prompt) -> str:
    """Return an arithmetic prompt with its answer, such as "62 - 53 = 9"; "" for any other prompt."""
    if not is_arithmetic(prompt):
        return ""
    assert prompt.text is not None
    return f"{plain_problem(prompt.text)} = {plain_number(prompt.answer)}"


def response_meaning(prompt: Prompt, response: str, reward: float | None) -> str:
    """Return what an arithmetic prompt asked and what the response said.

    Args:
        prompt: Any prompt.
        response: What the policy wrote; the number at its end counts as its answer.
        reward: The response's; 1 for a correct one, None where it was not scored.

    Returns:
        Such as "62 - 53 = 9; response 9, correct"; "" for a prompt that is not of an arithmetic source.
    """
    problem = problem_meaning(prompt)
    if not problem:
        return ""
    number = _LAST_NUMBER.search(response)
    said = plain_number(number.group()) if number else "without a number at its end"
    verdict = "not scored" if reward is None else "correct" if reward == 1.0 else f"wrong, reward {reward:g}"
    return f"{problem}; response {said}, {verdict.removesuffix(', reward 0')}"
