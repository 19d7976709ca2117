"""Arithmetic for a policy small enough to learn on a laptop: problems, and the flawed teacher of its warm-up.

Problems are short strings of fixed width for their kind, operands padded with zeros, every number with its least
significant digit first: "21+43=" asks for 12 + 34 and wants "640". In that order a carry is known before it is needed,
which makes the difference between a tiny policy that learns in minutes and one that does not.

The teacher, and why it errs. Reinforcement learning can only raise what the policy sometimes does. A policy warmed up on
right answers fails where it lacks the ability, and no number of rollouts changes that quickly; one that is then warmed up
by this teacher knows how to compute, but on some kinds it has learned to prefer a slip. There the right answer is a rarely
chosen mode, which a few rewards make common. Right answers have to come first: with slips from the start the same policy
had a third of the accuracy after 300 steps (.08 against .24). TEACHER is U-shaped over the kinds, so that success rates are
as spread as in real data: many prompts are nearly hopeless, many are nearly solved, few lie between. Within a kind the
accuracy moves with the first character of the text, so that prompts of one kind differ too.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kray.records import derive_seed

CHARACTERS = "0123456789+-*="  # every character of a prompt or an answer
SPLITS = ("train", "test")
_TEST_SHARE = 0.2
_ENUMERATED = 20_000  # kinds with no more problems than this are listed whole
_BLOCK = 4096
_OPERATORS = re.compile(r"[-+*=]")


class Problem(NamedTuple):
    """text ends in "="; answer: digits, least significant first, as wide as the kind's largest answer."""

    text: str
    answer: str
    kind: str


class _Kind(NamedTuple):
    """digits of the operands; the operators between them; digits of the answer; value of the operands."""

    digits: tuple[int, ...]
    operators: str
    answer_digits: int
    value: Callable[..., int]


def _kinds() -> dict[str, _Kind]:
    kinds = {f"add{d}": _Kind((d, d), "+", d + 1, lambda a, b: a + b) for d in (1, 2, 3, 4)}
    kinds |= {f"sub{d}": _Kind((d, d), "-", d, lambda a, b: a - b) for d in (1, 2, 3, 4)}
    kinds |= {f"mul{m}x{n}": _Kind((m, n), "*", m + n, lambda a, b: a * b) for m, n in ((2, 1), (3, 1), (2, 2))}
    kinds["chain"] = _Kind((2, 2, 2), "+-", 3, lambda a, b, c: a + b - c)
    kinds["muladd"] = _Kind((2, 2, 1), "+*", 3, lambda a, b, c: a + b * c)
    return kinds


_KINDS = _kinds()
KINDS: tuple[str, ...] = tuple(_KINDS)

# Probability that the teacher is right, where the problem's first character is 4 or 5. See the module's docstring.
TEACHER: dict[str, float] = {
    "add1": 0.97,
    "sub1": 0.95,
    "add2": 0.93,
    "sub2": 0.05,
    "add3": 0.04,
    "sub3": 0.96,
    "add4": 0.30,
    "sub4": 0.03,
    "mul2x1": 0.06,
    "mul3x1": 0.95,
    "mul2x2": 0.98,
    "chain": 0.08,
    "muladd": 0.50,
}
# Of a teacher with habits: share of the cells, least and largest probability of a right answer there.
HABITS = ((0.14, 0.001, 0.003), (0.38, 0.003, 0.05), (0.10, 0.05, 0.3), (0.10, 0.3, 0.9), (0.28, 0.95, 0.995))
_SPREAD = 0.35  # of the teacher's log-odds for each unit of the first character


def make_problems(kinds: Sequence[str], size: int, seed: int, split: str) -> list[Problem]:
    """`size` problems, the kinds in turn; equal arguments give equal problems on every machine.

    split: "train" or "test", disjoint by a hash of the text. A smaller size gives the head of a larger one. A kind repeats
    a problem only after all (large kinds: nearly all) of its problems in the split. Raises ValueError for unknown kinds
    and splits.
    """
    if not kinds:
        raise ValueError("kinds: none given")
    for kind in kinds:
        if kind not in _KINDS:
            raise ValueError(f'kind "{kind}" is not one of {", ".join(KINDS)}')
    if split not in SPLITS:
        raise ValueError(f'split "{split}" is not one of {", ".join(SPLITS)}')
    streams = [
        _stream(kind, derive_seed("arithmetic", seed, split, kind, turn), split) for turn, kind in enumerate(kinds)
    ]
    return [next(stream) for _, stream in zip(range(size), itertools.cycle(streams))]


def in_test(text: str) -> bool:
    """Whether a text belongs to the test split: a fifth of all do, by a hash, so the splits never share one."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "little") < _TEST_SHARE * 2**32


def teacher_accuracy(problem: Problem, accuracies: Mapping[str, float] = TEACHER) -> float:
    """Probability that the teacher is right on a problem: its kind's, moved by the first character of the text."""
    base = accuracies[problem.kind]
    if not 0.0 < base < 1.0:
        return base
    log_odds = math.log(base / (1.0 - base)) + _SPREAD * (int(problem.text[0]) - 4.5)
    return 1.0 / (1.0 + math.exp(-log_odds))


def noisy_answer(problem: Problem, rng: random.Random, accuracies: Mapping[str, float] = TEACHER) -> str:
    """The teacher's answer: right with `teacher_accuracy`, else a plausible slip of the same width, never right.

    Reproducible given the state of rng.
    """
    if rng.random() < teacher_accuracy(problem, accuracies):
        return problem.answer
    return rng.choice(slips(problem))


def habit(kind: str, mark: str) -> tuple[float, int]:
    """(probability of a right answer, which of four slips is made else) for problems of this kind and first character.

    Drawn by a hash: the probability from HABITS, so that success rates are U-shaped over prompts; the slip from those
    that `slips` lists, so that a single token decides and cells teach little about each other.
    """
    rng = random.Random(derive_seed("habit", kind, mark))
    share, chosen = rng.random(), HABITS[-1]
    for chosen in HABITS:
        share -= chosen[0]
        if share < 0:
            break
    low, high = (math.log(p / (1 - p)) for p in chosen[1:])
    return 1 / (1 + math.exp(-rng.uniform(low, high))), rng.randrange(4)


def habitual_answer(problem: Problem, rng: random.Random) -> str:
    """The answer of a teacher with habits. Reproducible given the state of rng."""
    accuracy, way = habit(problem.kind, problem.text[0])
    wrong = slips(problem)
    return problem.answer if rng.random() < accuracy else wrong[way % len(wrong)]


def slips(problem: Problem) -> list[str]:
    """Wrong answers that a pupil would give, at least one: a forgotten carry or borrow, one off, the wrong operation."""
    kind = _KINDS[problem.kind]
    width, limit = kind.answer_digits, 10**kind.answer_digits
    operands = [int(part[::-1]) for part in _OPERATORS.split(problem.text)[:-1]]
    right = int(problem.answer[::-1])
    first, second = operands[0], operands[1]
    wrong = [right + 1, right - 1, _without_carries(operands, kind.operators)]
    if kind.operators == "+":
        wrong.append(abs(first - second))
    elif kind.operators in ("-", "*"):
        wrong.append(first + second)
    elif kind.operators == "+-":
        wrong.append(first + second + operands[2])
    else:
        wrong.append((first + second) * operands[2])  # from left to right
    return [_reversed(value, width) for value in dict.fromkeys(wrong) if value != right and 0 <= value < limit]


def noisy_text(problem: Problem, rng: random.Random) -> str:
    """The problem with one digit of it read wrongly; its answer is of the same width and not negative."""
    kind = _KINDS[problem.kind]
    digits = [place for place, character in enumerate(problem.text) if character.isdigit()]
    while True:
        place = rng.choice(digits)
        text = problem.text[:place] + rng.choice("0123456789") + problem.text[place + 1 :]
        value = kind.value(*(int(part[::-1]) for part in _OPERATORS.split(text)[:-1]))
        if text != problem.text and 0 <= value < 10**kind.answer_digits:
            return text


def _without_carries(operands: Sequence[int], operators: str) -> int:
    """The value when every digit is computed by itself and no carry or borrow goes on."""
    value = operands[0]
    if operators == "+*":
        return _digitwise(value, _without_carries(operands[1:], "*"), 1)
    for operator, operand in zip(operators, operands[1:], strict=True):
        if operator == "*":
            total, place = 0, 1
            while value:
                value, digit = divmod(value, 10)
                total += digit * operand % 10 * place
                place *= 10
            value = total
        else:
            value = _digitwise(value, operand, 1 if operator == "+" else -1)
    return value


def _digitwise(first: int, second: int, sign: int) -> int:
    total, place = 0, 1
    while first or second:
        total += (first % 10 + sign * (second % 10)) % 10 * place
        first, second, place = first // 10, second // 10, place * 10
    return total


def _stream(name: str, seed: int, split: str) -> Iterator[Problem]:
    """Endless problems of one kind and split."""
    kind = _KINDS[name]
    bits = np.random.PCG64(seed)  # its raw bits are the same in every version of numpy
    test = split == "test"
    if 10 ** sum(kind.digits) <= _ENUMERATED:
        problems = [problem for problem in _listed(name) if in_test(problem.text) == test]
        while True:
            for index in np.argsort(bits.random_raw(len(problems)), kind="stable"):
                yield problems[index]
    seen: set[str] = set()
    while True:
        raw = bits.random_raw((len(kind.digits), _BLOCK))
        drawn = [(row % 10**d).tolist() for row, d in zip(raw, kind.digits, strict=True)]
        before = len(seen)
        for operands in zip(*drawn, strict=True):
            problem = _problem(name, kind, operands)
            if problem.text not in seen and in_test(problem.text) == test:
                seen.add(problem.text)
                yield problem
        if len(seen) == before:  # a whole block brought nothing new: begin again
            seen.clear()


@functools.cache
def _listed(name: str) -> tuple[Problem, ...]:
    """Every problem of a small kind."""
    kind = _KINDS[name]
    operands = itertools.product(*(range(10**digits) for digits in kind.digits))
    return tuple(dict.fromkeys(_problem(name, kind, each) for each in operands))


def _problem(name: str, kind: _Kind, operands: Sequence[int]) -> Problem:
    if kind.operators == "-":  # no answer is negative
        operands = (max(operands), min(operands))
    elif kind.operators == "+-":
        a, b, c = operands
        operands = (a, b, c % (a + b + 1))
    parts = [_reversed(operand, digits) for operand, digits in zip(operands, kind.digits, strict=True)]
    text = parts[0] + "".join(map("".join, zip(kind.operators, parts[1:], strict=True))) + "="
    return Problem(text, _reversed(kind.value(*operands), kind.answer_digits), name)


def _reversed(value: int, width: int) -> str:
    return str(value).zfill(width)[::-1]
