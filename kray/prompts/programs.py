"""Python functions of one line that small chat models are asked to write, with tests for the code verifier.

A prompt names the function and its argument, which say nothing about what it computes. The four calls that test it are not
part of the prompt; at least two of them have different results, so that no constant passes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kray.prompts.templates import Family, Task, Template

_FUNCTION_LIST = """
    apply calc compute do_it f func g h job make my_func p q run solve step task work
"""
_FUNCTIONS = _FUNCTION_LIST.split()
_NUMBER, _TEXT, _LIST = ("a", "k", "n", "x"), ("s", "t", "text", "word"), ("items", "numbers", "v", "values")
_WORD_LIST = """
    apple bridge candle castle coffee engine family flower forest garden guitar island jacket kitchen market mirror morning
    mountain orange pencil picture planet pocket salad school shadow silver spring summer table tiger train valley winter
"""
_WORDS = _WORD_LIST.split()


class _Program(NamedTuple):
    """A function to write.

    Attributes:
        arguments: Names that its argument may have.
        returns: What it returns; {x} is the argument.
        body: The same as a Python expression.
        value: Computes it.
        inputs: Arguments of the calls that test it.
    """

    arguments: Sequence[str]
    returns: str
    body: str
    value: Callable[[Any], Any]
    inputs: Sequence[Any]


def _plus(rng: random.Random) -> _Program:
    n = rng.randint(2, 20)
    return _Program(_NUMBER, f"{{x}} plus {n}", f"{{x}} + {n}", lambda x: x + n, _numbers(rng))


def _times(rng: random.Random) -> _Program:
    n = rng.randint(2, 20)
    return _Program(_NUMBER, f"{{x}} multiplied by {n}", f"{{x}} * {n}", lambda x: x * n, _numbers(rng))


def _square(rng: random.Random) -> _Program:
    n = rng.randint(2, 20)
    return _Program(_NUMBER, f"the square of {{x}} plus {n}", f"{{x}} ** 2 + {n}", lambda x: x**2 + n, _numbers(rng))


def _remainder(rng: random.Random) -> _Program:
    n = rng.randint(3, 20)
    inputs = [rng.randrange(n), n, n + 1 + rng.randrange(n - 1), 3 * n - 1]
    return _Program(_NUMBER, f"the remainder of {{x}} divided by {n}", f"{{x}} % {n}", lambda x: x % n, inputs)


def _multiple(rng: random.Random) -> _Program:
    n = rng.randint(3, 20)
    inputs = [n, n * rng.randint(2, 20), n * rng.randint(2, 9) + 1, n * rng.randint(2, 9) - 1]
    returns = f"True if {{x}} is divisible by {n} and False if not"
    return _Program(_NUMBER, returns, f"{{x}} % {n} == 0", lambda x: x % n == 0, inputs)


def _above(rng: random.Random) -> _Program:
    n = rng.randint(3, 60)
    returns = f"True if {{x}} is greater than {n} and False if not"
    return _Program(_NUMBER, returns, f"{{x}} > {n}", lambda x: x > n, [n - 1, n, n + 1, n + rng.randint(2, 30)])


def _length(rng: random.Random) -> _Program:
    n = rng.randint(1, 20)
    inputs = [*rng.sample(_WORDS, 2), "a", ""]
    return _Program(
        _TEXT, f"the length of the string {{x}} plus {n}", f"len({{x}}) + {n}", lambda s: len(s) + n, inputs
    )


def _repeat(rng: random.Random) -> _Program:
    n = rng.randint(2, 9)
    return _Program(
        _TEXT, f"the string {{x}} repeated {n} times", f"{{x}} * {n}", lambda s: s * n, rng.sample(_WORDS, 4)
    )


def _prefix(rng: random.Random) -> _Program:
    word = rng.choice(_WORDS)
    returns, inputs = f'the string "{word}" followed by the string {{x}}', rng.sample(_WORDS, 4)
    return _Program(_TEXT, returns, f'"{word}" + {{x}}', lambda s: word + s, inputs)


def _total(rng: random.Random) -> _Program:
    n = rng.randint(2, 20)
    returns = f"the sum of the numbers in the list {{x}} plus {n}"
    return _Program(_LIST, returns, f"sum({{x}}) + {n}", lambda v: sum(v) + n, _lists(rng))


def _largest(rng: random.Random) -> _Program:
    n = rng.randint(2, 20)
    returns = f"the largest number in the list {{x}} multiplied by {n}"
    return _Program(_LIST, returns, f"max({{x}}) * {n}", lambda v: max(v) * n, _lists(rng))


def _count(rng: random.Random) -> _Program:
    n = rng.randint(2, 20)
    inputs = [[n] * count + [n + 1, n - 1] for count in (0, 1, 2, 3)]
    for values in inputs:
        rng.shuffle(values)
    return _Program(_LIST, f"how often {n} occurs in the list {{x}}", f"{{x}}.count({n})", lambda v: v.count(n), inputs)


def _numbers(rng: random.Random) -> list[int]:
    return rng.sample(range(3, 50), 4)


def _lists(rng: random.Random) -> list[list[int]]:
    """Return lists of which the shortest has the smallest sum and the smallest maximum."""
    return [rng.sample(range(1, 10), 2), *(rng.sample(range(10, 30), size) for size in (3, 4, 5))]


def _template(make: Callable[[random.Random], _Program]) -> Template:
    def draw(rng: random.Random) -> Task:
        program = make(rng)
        name, x = rng.choice(_FUNCTIONS), rng.choice(program.arguments)
        inputs = [*program.inputs]
        rng.shuffle(inputs)
        calls = [{"call": name, "args": [value], "value": program.value(value)} for value in inputs]
        return Task(
            text=f"Write a Python function {name}({x}) that returns {program.returns.format(x=x)}.",
            answer=json.dumps({"calls": calls}),
            reference=f"```python\ndef {name}({x}):\n    return {program.body.format(x=x)}\n```",
        )

    return draw


_KINDS = {
    "plus": _plus,
    "times": _times,
    "square": _square,
    "remainder": _remainder,
    "multiple": _multiple,
    "above": _above,
    "length": _length,
    "repeat": _repeat,
    "prefix": _prefix,
    "total": _total,
    "largest": _largest,
    "count": _count,
}
PROGRAMS = Family("programs", {kind: _template(make) for kind, make in _KINDS.items()})
