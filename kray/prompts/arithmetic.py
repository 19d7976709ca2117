"""Arithmetic for a policy small enough to learn on a laptop: problems, and the noisy demonstrations of its warm-up.

Problems are short strings of fixed width per kind, operands padded with zeros, every number with its least significant digit
first: "21+43=" asks for 12 + 34 and expects "640". In that order a carry is known before it is needed, which decides whether
a tiny policy learns in minutes or not at all.

Why demonstrations contain errors: reinforcement learning can only raise the probability of what the policy sometimes does. A
policy warmed up on right answers fails where it lacks the ability, and no number of rollouts changes that quickly. One that is
then warmed up on noisy demonstrations can compute, but has learned to prefer an error on some kinds; there the right answer
is a rarely chosen mode, which a few rewards make common. Right answers have to come first: with errors from the start the same
policy had a third of the accuracy after 300 steps (.08 against .24). TEACHER_ACCURACY is U-shaped over the kinds, so that
success rates are as spread as in real data: many prompts are nearly hopeless, many nearly solved, few in between. Within a
kind the accuracy depends on the first character of the text, so that prompts of one kind differ, too.
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

# All characters of prompts and answers.
CHARACTERS = "0123456789+-*="
SPLITS = ("train", "test")
# Share of all texts that belong to the test split.
_TEST_SHARE = 0.2
# Kinds with at most this many problems are listed completely.
_ENUMERATED = 20_000
# Problems that are drawn at once for larger kinds.
_BLOCK = 4096
_OPERATORS = re.compile(r"[-+*=]")


class Problem(NamedTuple):
    """A problem.

    Attributes:
        text: The prompt, which ends in "=".
        answer: Digits, least significant first, as wide as the kind's largest answer.
        kind: One of KINDS.
    """

    text: str
    answer: str
    kind: str


class _Kind(NamedTuple):
    """Digits of each operand, the operators between them, digits of the answer, and the function that computes it."""

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

# Probability of a right demonstration by kind, between first characters 4 and 5. See the module's docstring.
TEACHER_ACCURACY: dict[str, float] = {
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
# Demonstrations with systematic errors: share of the (kind, first character) cells, least and largest probability of a right
# answer in them.
ACCURACY_RANGES = ((0.14, 0.001, 0.003), (0.38, 0.003, 0.05), (0.10, 0.05, 0.3), (0.10, 0.3, 0.9), (0.28, 0.95, 0.995))
# Change in the log-odds of a right demonstration per unit of the first character.
_SPREAD = 0.35
# Stands between a draft and the answer that counts.
DRAFT_MARK = "="
# Probability that a digit of a draft is replaced by a random one: drafts tell what the answer will be, but not reliably.
DRAFT_ERROR = 0.25


def make_problems(kinds: Sequence[str], size: int, seed: int, split: str) -> list[Problem]:
    """Make problems; equal arguments give equal problems on every machine.

    Args:
        kinds: Names from KINDS, which alternate.
        size: Number of problems. A smaller size gives the beginning of a larger one.
        seed: Seed of the draws.
        split: "train" or "test", disjoint by a hash of the text.

    Returns:
        `size` problems. A kind repeats a problem only after all (large kinds: nearly all) of its problems in the split.

    Raises:
        ValueError: A kind or the split is unknown.
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
    """Return whether a text belongs to the test split: a fifth of all do, by a hash, so that splits are disjoint."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "little") < _TEST_SHARE * 2**32


def teacher_accuracy(problem: Problem, accuracies: Mapping[str, float] = TEACHER_ACCURACY) -> float:
    """Return the probability of a right demonstration: that of the kind, shifted by the first character of the text.

    Args:
        problem: The problem.
        accuracies: Probability by kind.
    """
    base = accuracies[problem.kind]
    if not 0.0 < base < 1.0:
        return base
    log_odds = math.log(base / (1.0 - base)) + _SPREAD * (int(problem.text[0]) - 4.5)
    return 1.0 / (1.0 + math.exp(-log_odds))


def noisy_answer(problem: Problem, rng: random.Random, accuracies: Mapping[str, float] = TEACHER_ACCURACY) -> str:
    """Draw a noisy demonstration.

    Args:
        problem: The problem.
        rng: Source of randomness.
        accuracies: Probability of a right answer by kind.

    Returns:
        The right answer with probability `teacher_accuracy`, else one of `wrong_answers`.
    """
    if rng.random() < teacher_accuracy(problem, accuracies):
        return problem.answer
    return rng.choice(wrong_answers(problem))


def systematic_error(kind: str, mark: str) -> tuple[float, int]:
    """Return how demonstrations of a cell err.

    Both values are drawn by a hash: the probability from ACCURACY_RANGES, so that success rates are U-shaped over prompts;
    the error independently, so that one token decides and a cell reveals little about others.

    Args:
        kind: Kind or label of the problems.
        mark: First character of the text.

    Returns:
        (probability of a right answer, index of the wrong answer that is given otherwise, below 4).
    """
    # The name of the seed is part of what older policies were trained with.
    rng = random.Random(derive_seed("habit", kind, mark))
    share, chosen = rng.random(), ACCURACY_RANGES[-1]
    for chosen in ACCURACY_RANGES:
        share -= chosen[0]
        if share < 0:
            break
    low, high = (math.log(p / (1 - p)) for p in chosen[1:])
    return 1 / (1 + math.exp(-rng.uniform(low, high))), rng.randrange(4)


def systematic_answer(problem: Problem, rng: random.Random) -> str:
    """Draw a demonstration with systematic errors; see `systematic_error`."""
    accuracy, which = systematic_error(problem.kind, problem.text[0])
    wrong = wrong_answers(problem)
    return problem.answer if rng.random() < accuracy else wrong[which % len(wrong)]


def with_draft(answer: str, most: int, rng: random.Random) -> str:
    """Put a draft before an answer, as in "64=640", so that one answer can be given by many responses.

    Args:
        answer: The answer that is given, right or wrong.
        most: Largest number of digits of the draft.
        rng: Source of randomness.

    Returns:
        The first L digits of the answer (all of a shorter one), L from 0 to `most` with equal probability, each replaced by a
        random digit with probability DRAFT_ERROR; then DRAFT_MARK and the answer.
    """
    digits = [
        rng.choice("0123456789") if rng.random() < DRAFT_ERROR else digit for digit in answer[: rng.randint(0, most)]
    ]
    return "".join(digits) + DRAFT_MARK + answer


def wrong_answers(problem: Problem) -> list[str]:
    """Return plausible wrong answers of the right width, at least one: off by one, without carries, another operation."""
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
        # Evaluated from left to right.
        wrong.append((first + second) * operands[2])
    return [_reversed(value, width) for value in dict.fromkeys(wrong) if value != right and 0 <= value < limit]


def noisy_text(problem: Problem, rng: random.Random) -> str:
    """Return the problem's text with one digit changed, whose answer has the same width and is not negative."""
    kind = _KINDS[problem.kind]
    digits = [place for place, character in enumerate(problem.text) if character.isdigit()]
    while True:
        place = rng.choice(digits)
        text = problem.text[:place] + rng.choice("0123456789") + problem.text[place + 1 :]
        value = kind.value(*(int(part[::-1]) for part in _OPERATORS.split(text)[:-1]))
        if text != problem.text and 0 <= value < 10**kind.answer_digits:
            return text


def _without_carries(operands: Sequence[int], operators: str) -> int:
    """Compute the value with every digit by itself, without carries and borrows."""
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
    """Yield problems of one kind and split, endlessly."""
    kind = _KINDS[name]
    # Its raw bits are the same in every version of numpy.
    bits = np.random.PCG64(seed)
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
        # A whole block without a new problem: start over.
        if len(seen) == before:
            seen.clear()


@functools.cache
def _listed(name: str) -> tuple[Problem, ...]:
    """Return all problems of a small kind."""
    kind = _KINDS[name]
    operands = itertools.product(*(range(10**digits) for digits in kind.digits))
    return tuple(dict.fromkeys(_problem(name, kind, each) for each in operands))


def _problem(name: str, kind: _Kind, operands: Sequence[int]) -> Problem:
    # No answer is negative.
    if kind.operators == "-":
        operands = (max(operands), min(operands))
    elif kind.operators == "+-":
        a, b, c = operands
        operands = (a, b, c % (a + b + 1))
    parts = [_reversed(operand, digits) for operand, digits in zip(operands, kind.digits, strict=True)]
    text = parts[0] + "".join(map("".join, zip(kind.operators, parts[1:], strict=True))) + "="
    return Problem(text, _reversed(kind.value(*operands), kind.answer_digits), name)


def _reversed(value: int, width: int) -> str:
    return str(value).zfill(width)[::-1]
