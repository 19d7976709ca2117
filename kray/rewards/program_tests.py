"""The tests of a program, as the right answer of the code verifier holds them (see code.py for their form).

What is read here has no error that only a run would show, as far as that can be said without one: texts are Python, what
right sides need is kept from the program.
"""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kray.rewards import values
from kray.rewards.asserts import Assert, Setup, names_of, parse, read_assert
from kray.rewards.confined.plain import encode
from kray.rewards.values import Tolerance

FORMS = ("cases", "calls", "asserts")


@dataclass(frozen=True, slots=True)
class Test:
    """One test.

    Args:
        asked: a script's standard input, or the expressions that the program's process evaluates.
        around: of an assert: a function that makes the left side of their values, evaluated apart; "": there is but one
            value, and it is the left side.
        right: what a script prints; an encoded value; of an assert the text of its right side.
    """

    asked: tuple[str, ...]
    right: Any
    around: str = ""


@dataclass(frozen=True, slots=True)
class Tests:
    """All tests of a program. setup: for what is evaluated apart; program_setup: what the program may see of it."""

    form: str
    tests: tuple[Test, ...]
    tolerance: Tolerance
    setup: str
    program_setup: str


@functools.lru_cache(maxsize=64)
def read_tests(answer: str) -> Tests:
    """The tests of a right answer. Raises ValueError that says what is wrong with the answer."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        raise ValueError(f"code: the answer must be JSON, not {answer[:60]!r}") from None
    forms = [form for form in FORMS if isinstance(found, dict) and form in found]
    if len(forms) != 1 or set(found) - {*forms, "setup", "tolerance"}:
        keys = ", ".join(found) if isinstance(found, dict) else type(found).__name__
        raise ValueError(f'code: the answer must hold one of "cases", "calls" and "asserts", not {keys[:80]}')
    form, tests, setup = forms[0], found[forms[0]], found.get("setup", "")
    if not isinstance(tests, list) or not tests:
        raise ValueError(f'code: "{form}" must be a list of at least one test')
    if not isinstance(setup, str) or (form == "cases" and setup.strip()):
        raise ValueError('code: "setup" must be text, and only calls and asserts have one')
    tolerance = _placed('"tolerance"', Tolerance.read, found.get("tolerance", 0.0))
    split = _placed('"setup"', Setup, setup)
    readers: dict[str, Callable[[Any], Test]] = {
        "cases": _case, "calls": _call, "asserts": functools.partial(_assert, setup=split),
    }  # fmt: skip
    places = [f'"{form}", test {number}' for number in range(1, len(tests) + 1)]
    made = tuple(_placed(place, readers[form], test) for place, test in zip(places, tests, strict=True))
    return Tests(
        form, made, tolerance, setup, _for_the_program(split, setup, made, places) if form == "asserts" else setup
    )


def _placed(place: str, read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"code: {place}: {error}") from None


def _case(test: Any) -> Test:
    if not isinstance(test, dict) or set(test) != {"input", "output"}:
        raise ValueError('must be {"input": text, "output": text}')
    for text in test.values():
        if not isinstance(text, str):
            raise ValueError('must be {"input": text, "output": text}')
        text.encode()
    return Test((test["input"],), test["output"])


def _call(test: Any) -> Test:
    known = {"call", "args", "kwargs", "value"}
    if not isinstance(test, dict) or not {"call", "value"} <= set(test) <= known or not isinstance(test["call"], str):
        raise ValueError('must be {"call": text, "args": list, "kwargs": object, "value": any}')
    args, kwargs = test.get("args", []), test.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ValueError('"args" must be a list and "kwargs" an object')
    body = parse(f"({test['call'].strip()}\n)")
    if len(body) != 1 or not isinstance(body[0], ast.Expr):
        raise ValueError(f'"call" must be an expression, not {test["call"]!r:.80}')
    given = f"*{values.source(encode(args))}, **{values.source(encode(kwargs))}"
    return Test((f"({ast.unparse(body[0])})({given})",), encode(test["value"]))


def _assert(test: Any, setup: Setup) -> Test:
    found: Assert = read_assert(test, setup)
    return Test(found.asked, found.right, found.around)


def _for_the_program(split: Setup, setup: str, tests: tuple[Test, ...], places: list[str]) -> str:
    """The setup without what right sides, and left sides around the program's values, use.

    Raises ValueError for what the program needs, too.
    """
    needed = split.reached(set().union(*(_names(text) for test in tests for text in test.asked)))
    hidden: set[str] = set()
    for test, place in zip(tests, places, strict=True):
        right = split.reached(_names(test.right) | (_names(test.around) if test.around else set()))
        if both := needed & right:
            raise ValueError(
                f"code: {place}: {', '.join(sorted(both))} of the setup is used on its right side and by what the program "
                "is asked, so that the program could look what is right up there; write the value out"
            )
        hidden |= right
    return split.without(hidden) if hidden else setup


def _names(expression: str) -> set[str]:
    return names_of(ast.parse(expression, mode="eval"))
