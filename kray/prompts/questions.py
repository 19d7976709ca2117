"""One-line questions in plain English whose answer is a whole number, for small chat models.

Each kind is a template over small numbers or words.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from kray.prompts.templates import Family, Task, Template

_NAME_LIST = """
    Ann Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Mary Noah Olga Paul Rosa Sam Tina Will
"""
_THING_LIST = """
    apples balls books cards coins cups eggs flowers keys pears pencils plates shells stamps stones
"""
_WORD_LIST = """
    apple bird bread bridge candle castle chair cloud coffee dog door dream eagle engine family field fish flower forest garden
    glass gold grass green guitar hand heart horse house island jacket kitchen lake lamp lemon letter light lion market metal
    milk mirror moon morning mountain mouse music night ocean orange paper pencil piano picture planet pocket queen rain river
    road rose salt school shadow ship silver sky snow spring star stone storm summer sun table tiger train tree valley village
    water wheel wind window winter wood yellow
"""
_NAMES, _THINGS, _WORDS = _NAME_LIST.split(), _THING_LIST.split(), _WORD_LIST.split()


def _sum(rng: random.Random) -> tuple[str, int]:
    a, b = rng.randint(2, 20), rng.randint(2, 20)
    return f"What is {a} + {b}?", a + b


def _difference(rng: random.Random) -> tuple[str, int]:
    name, things, b = rng.choice(_NAMES), rng.choice(_THINGS), rng.randint(2, 9)
    a = b + rng.randint(1, 10)
    return f"{name} has {a} {things} and gives away {b}. How many {things} are left?", a - b


def _product(rng: random.Random) -> tuple[str, int]:
    a, b = rng.randint(2, 12), rng.randint(2, 9)
    return f"What is {a} times {b}?", a * b


def _half(rng: random.Random) -> tuple[str, int]:
    a = rng.randint(1, 50)
    return f"What is half of {2 * a}?", a


def _total(rng: random.Random) -> tuple[str, int]:
    name, things, a, b = rng.choice(_NAMES), rng.choice(_THINGS), rng.randint(2, 12), rng.randint(2, 12)
    return f"{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?", a + b


def _boxes(rng: random.Random) -> tuple[str, int]:
    things, a, b = rng.choice(_THINGS), rng.randint(2, 9), rng.randint(2, 6)
    return f"There are {b} boxes with {a} {things} each. How many {things} are there?", a * b


def _letters(rng: random.Random) -> tuple[str, int]:
    word = rng.choice(_WORDS)
    return f'How many letters are in the word "{word}"?', len(word)


def _largest(rng: random.Random) -> tuple[str, int]:
    numbers = rng.sample(range(1, 100), 3)
    return f"Which of these numbers is the largest: {numbers[0]}, {numbers[1]} or {numbers[2]}?", max(numbers)


def _template(make: Callable[[random.Random], tuple[str, int]]) -> Template:
    def draw(rng: random.Random) -> Task:
        text, answer = make(rng)
        return Task(text, str(answer), str(answer))

    return draw


_KINDS = {
    "sum": _sum,
    "difference": _difference,
    "product": _product,
    "half": _half,
    "total": _total,
    "boxes": _boxes,
    "letters": _letters,
    "largest": _largest,
}
QUESTIONS = Family("questions", {kind: _template(make) for kind, make in _KINDS.items()})
