"""One-line questions in plain English whose answer is a whole number, for small chat models.

Each kind is a template over small numbers or words. Equal seeds give equal questions on every machine; a hash of the question
decides its split, so that training and test share none.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kray.prompts.arithmetic import SPLITS, in_test
from kray.records import derive_seed

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
# Repeats of a question in a row after which a kind counts as used up and starts again.
_TRIES = 400


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        kind: A name from KINDS.
        text: The question.
        answer: Its answer, a whole number in digits.
    """

    kind: str
    text: str
    answer: str


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


_KINDS: dict[str, Callable[[random.Random], tuple[str, int]]] = {
    "sum": _sum,
    "difference": _difference,
    "product": _product,
    "half": _half,
    "total": _total,
    "boxes": _boxes,
    "letters": _letters,
    "largest": _largest,
}
KINDS: tuple[str, ...] = tuple(_KINDS)


def make_questions(kinds: Sequence[str], size: int, seed: int, split: str) -> list[Question]:
    """Make questions.

    Args:
        kinds: Names from KINDS, which alternate.
        size: Number of questions. A smaller size gives the beginning of a larger one.
        seed: Seed of the draws.
        split: "train" or "test".

    Returns:
        `size` questions. A kind repeats a question only after nearly all of its questions in the split.

    Raises:
        ValueError: A kind or the split is unknown.
    """
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        raise ValueError(f'kind "{unknown[0]}" is not one of {", ".join(KINDS)}')
    if split not in SPLITS:
        raise ValueError(f'split "{split}" is not one of {", ".join(SPLITS)}')
    streams = [_stream(kind, derive_seed("questions", seed, split, kind), split) for kind in kinds]
    return [next(stream) for stream in itertools.islice(itertools.cycle(streams), size)]


def _stream(kind: str, seed: int, split: str) -> Iterator[Question]:
    rng, seen, repeats = random.Random(seed), set[str](), 0
    while True:
        text, answer = _KINDS[kind](rng)
        if in_test(text) != (split == "test"):
            continue
        if text in seen:
            repeats += 1
            if repeats < _TRIES:
                continue
            seen.clear()
        seen.add(text)
        repeats = 0
        yield Question(kind, text, str(answer))
