"""Read the tests of a program from the right answer of the code verifier (code.py describes the format).

Everything that can be checked without running anything is checked here: source texts are Python, and what right sides
need is hidden from the program.
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

    Attributes:
        inputs: The standard input of a script (one item), or the expressions that the program's process evaluates.
        right: The expected output of a script; the expected value, encoded; or the source of an assert's right side.
        combine: Of an assert: source of a function that computes the left side from the values of `inputs` in a separate
            process; "" when there is one value and it is the left side.
    """

    inputs: tuple[str, ...]
    right: Any
    combine: str = ""


@dataclass(frozen=True, slots=True)
class Tests:
    """All tests of a program.

    Attributes:
        form: One of FORMS.
        tests: At least one test.
        tolerance: How far numbers may be from the expected ones.
        setup: Setup for what is evaluated without the program.
        program_setup: The part of the setup that the program may see.
    """

    form: str
    tests: tuple[Test, ...]
    tolerance: Tolerance
    setup: str
    program_setup: str


@functools.lru_cache(maxsize=64)
def read_tests(answer: str) -> Tests:
    """Read the tests in a right answer.

    Args:
        answer: JSON, see code.py.

    Raises:
        ValueError: The answer does not have the described form; the message names the test.
    """
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
    tolerance = _read_at('"tolerance"', Tolerance.read, found.get("tolerance", 0.0))
    parsed = _read_at('"setup"', Setup, setup)
    readers: dict[str, Callable[[Any], Test]] = {
        "cases": _case,
        "calls": _call,
        "asserts": functools.partial(_assert, setup=parsed),
    }
    places = [f'"{form}", test {number}' for number in range(1, len(tests) + 1)]
    made = tuple(_read_at(place, readers[form], test) for place, test in zip(places, tests, strict=True))
    program_setup = _program_setup(parsed, setup, made, places) if form == "asserts" else setup
    return Tests(form, made, tolerance, setup, program_setup)


def _read_at(place: str, read: Callable[[Any], Any], value: Any) -> Any:
    """Apply a reader and prefix its errors with the place."""
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
    arguments = f"*{values.source(encode(args))}, **{values.source(encode(kwargs))}"
    return Test((f"({ast.unparse(body[0])})({arguments})",), encode(test["value"]))


def _assert(test: Any, setup: Setup) -> Test:
    found: Assert = read_assert(test, setup)
    return Test(found.expressions, found.right, found.combine)


def _program_setup(parsed: Setup, setup: str, tests: tuple[Test, ...], places: list[str]) -> str:
    """Return the setup without what right sides, and the code that combines the program's values, use.

    Raises:
        ValueError: The program needs some of that, too.
    """
    needed = parsed.dependencies(set().union(*(_names(text) for test in tests for text in test.inputs)))
    hidden: set[str] = set()
    for test, place in zip(tests, places, strict=True):
        right = parsed.hidden_names(_names(test.right) | (_names(test.combine) if test.combine else set()))
        if both := needed & right:
            raise ValueError(
                f"code: {place}: {', '.join(sorted(both))} of the setup is used both on the right side and by the expressions "
                "that the program evaluates, so the program could read the right answer there; write the value out"
            )
        hidden |= right
    return parsed.without(hidden) if hidden else setup


def _names(expression: str) -> set[str]:
    return names_of(ast.parse(expression, mode="eval"))
