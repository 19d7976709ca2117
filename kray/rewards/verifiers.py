"""Verifiers: functions that compare a response with the right answer.

A verifier is `fn(response: str, answer: str, **options) -> float | bool | Reward`. A wrong response is worth 0; an
exception means that the answer or the verifier is broken (a data failure), never that the response is wrong.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kray.rewards.responses import outside_thinking


@dataclass(frozen=True, slots=True)
class Reward:
    """What a response earned. value: finite; detail: a short reason for people, may be empty, in printable characters."""

    value: float
    detail: str = ""


_DETAIL_CHARACTERS = 1000  # of a detail are kept

Verifier = Callable[..., "Reward | float | bool"]

# Where each verifier lives, in the form that a verifier of your own is named in. Not the functions themselves: importing
# sympy or reasoning_gym takes a second, and most runs need one of them at most.
VERIFIERS: dict[str, str] = {
    "exact": "kray.rewards.verifiers:exact",
    "math": "kray.rewards.mathematics:verify_math",
    "code": "kray.rewards.code:verify_code",
    "reasoning_gym": "kray.rewards.reasoning:verify_reasoning",
}


def score(verifier: str, response: str, answer: str, **options: Any) -> Reward:
    """Judge one response in this process, without a deadline.

    verifier: a key of VERIFIERS or "pkg.mod:fn". Raises ValueError for an unknown verifier or a reward that is not a
    finite number; whatever the verifier raises is passed on.
    """
    return as_reward(load_verifier(verifier)(response, answer, **options), verifier)


def load_verifier(name: str) -> Verifier:
    """The function behind a verifier's name. Raises ValueError that names the verifier and says what was looked for."""
    path = VERIFIERS.get(name, name)
    module_name, colon, function_name = path.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, VERIFIERS, n=1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise ValueError(f'verifier "{name}" is not known{hint}; known: {", ".join(VERIFIERS)}, or pkg.mod:fn')
    if not module_name or not function_name:
        raise ValueError(f'verifier "{name}": write it as pkg.mod:fn')
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(f'verifier "{name}": importing {module_name} failed: {_brief(error)}') from error
    for part in function_name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(f'verifier "{name}": {module_name} has no function "{function_name}"')
    return found


def check_verifier(name: str, **options: Any) -> None:
    """Raise ValueError unless the verifier can be loaded, takes these options and finds what it needs on this machine.

    The verifier itself is not called; what it needs is looked for by its attribute `check(**options)`, if it has one.
    """
    function = load_verifier(name)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled functions may hide theirs
        return
    try:
        signature.bind("response", "answer", **options)
    except TypeError as error:
        raise ValueError(f'verifier "{name}" takes {signature}: {error}') from None
    if (needs := getattr(function, "check", None)) is not None:
        try:
            needs(**options)
        except Exception as error:
            raise ValueError(f'verifier "{name}": {error}') from error


def check_answer(name: str, answer: str) -> None:
    """Raise ValueError for a right answer that this verifier cannot use, by its attribute `check_answer`, if it has one."""
    if (check := getattr(load_verifier(name), "check_answer", None)) is not None:
        check(answer)


def as_reward(value: Any, verifier: str) -> Reward:
    """What a verifier returned, as a Reward with a finite float. Raises ValueError that names the verifier."""
    detail = ""
    if isinstance(value, Reward):
        value, detail = value.value, value.detail
    if not isinstance(value, numbers.Real) and hasattr(value, "item") and getattr(value, "size", 2) == 1:
        value = value.item()  # a numpy bool or an array of one
    if not isinstance(value, numbers.Real):
        raise ValueError(f'verifier "{verifier}" returned {type(value).__name__}, not a number')
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f'verifier "{verifier}" returned {number}, not a finite number')
    return Reward(number, _printable(str(detail)[:_DETAIL_CHARACTERS]))


def exact(response: str, answer: str, *, case_sensitive: bool = True, strip: bool = True) -> Reward:
    """Give 1 when response and answer are the same text, else 0.

    Nothing else is taken for the same: no full stop, no other spelling of a number, no other form of a Unicode character.
    Thinking (<think></think>) is no part of the response.

    Args:
        case_sensitive: False: upper and lower case are the same.
        strip: leave spaces and line ends at both ends out.

    Raises:
        ValueError: for a right answer without a character but spaces, which saying nothing would earn.
    """
    check_text(answer)
    right = answer.strip() if strip else answer
    for said in (response, outside_thinking(response)):
        given = said.strip() if strip else said
        if given == right or (not case_sensitive and given.casefold() == right.casefold()):
            return Reward(1.0)
    return Reward(0.0, f"{given[:40]!r} is not {right[:40]!r}")


def check_text(answer: str) -> None:
    """Raise ValueError for a right answer that `exact` cannot use."""
    if not answer.strip():
        raise ValueError("exact: the right answer is empty, so that a response that says nothing would be right")


exact.check_answer = check_text  # type: ignore[attr-defined]  # see check_answer


def _printable(text: str) -> str:
    """A text that every log, table and terminal can take: control characters and halves of characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
