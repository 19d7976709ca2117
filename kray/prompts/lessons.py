"""reasoning_gym tasks as a tiny policy is taught them: questions, right answers, and the slips of a flawed teacher.

Why a teacher errs is told in kray/prompts/arithmetic.py. Here its accuracy goes by the task's label, and within a label by
the first character of the answer, so that prompts of one label differ too; what it gives in place of the right answer is a
slip that the task's own verifier does not take for right.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import chain
from typing import Any, NamedTuple

from kray.config.schema import SourceConfig
from kray.prompts.generated import entries_of, judge
from kray.records import DataError

RECIPE = 1  # raise it when slips, odds or phrases change, so that old policies are not taken for new ones
_SPREAD = 0.35  # of the teacher's log-odds for each unit of the answer's first character
_PIECES = re.compile(r"[^\W\d_]+|[\s\S]")
_TEMPLATE_SHARE = 0.5  # of a task's questions: what stands in so many is its template
_NUMBER = re.compile(r"-?\d+")


class Lesson(NamedTuple):
    """A question in the shape of an arithmetic Problem. wrong: what the teacher says when it errs, at least one."""

    text: str
    answer: str
    kind: str
    wrong: tuple[str, ...]


def make_lessons(tasks: Mapping[str, Any], size: int, seed: int) -> list[Lesson]:
    """About `size` questions of the train split, the labels in turn. Raises DataError for what cannot be made."""
    each = max(1, size // len(tasks))
    source = SourceConfig(kind="reasoning_gym", split="train", seed=seed, tasks=dict(tasks))
    made = [[_lesson(label, task, entry) for task, entry in entries_of(source, label, each)] for label in tasks]
    return list(chain.from_iterable(zip(*made, strict=True)))


def recipe(tasks: Mapping[str, Any]) -> list[Any]:
    """What lessons depend on beside their arguments: JSON values."""
    return [RECIPE, version("reasoning-gym"), list(tasks)]


def teacher_accuracy(lesson: Lesson, accuracies: Mapping[str, float]) -> float:
    """Probability that the teacher is right: its label's (1 where none is given), moved by the answer's first character."""
    base = accuracies.get(lesson.kind, 1.0)
    if not 0.0 < base < 1.0:
        return base
    log_odds = math.log(base / (1.0 - base)) + _SPREAD * (ord(lesson.answer[0]) % 10 - 4.5)
    return 1.0 / (1.0 + math.exp(-log_odds))


def teach(lesson: Lesson, rng: random.Random, accuracies: Mapping[str, float]) -> str:
    """The teacher's answer, reproducible given the state of rng; one that is not right is never judged right."""
    if rng.random() < teacher_accuracy(lesson, accuracies):
        return lesson.answer
    return rng.choice(lesson.wrong)


def slips(answer: str) -> list[str]:
    """Wrong answers that know the right one, each once, at least one for any answer: a number gets the other sign or a zero
    too many, anything else is given backward or ends too early.

    All of them are one wrong decision, not a near miss: "23" for "22" is what a policy also says that computes badly, and
    teaching it leaves the right answer as likely as its neighbours.
    """
    if _NUMBER.fullmatch(answer) and not int(answer):
        wrong = ["1", "10"]  # many verifiers take -0 and 00 for 0
    elif _NUMBER.fullmatch(answer):
        wrong = [answer.removeprefix("-") if answer[0] == "-" else f"-{answer}", f"{answer}0"]
    elif ", " in answer:
        parts = answer.split(", ")
        wrong = [", ".join(reversed(parts)), ", ".join(parts[:-1])]
    else:
        wrong = [answer[::-1], answer[:-1].rstrip()]
    found = [text for text in dict.fromkeys(wrong) if text not in (answer, "")]
    return found or [f"{answer}{answer[-1:] or 0}"]


def phrases(lessons: Sequence[Lesson]) -> list[str]:
    """The templates of the questions: the longest runs of words and signs that stand in half of a label's questions."""
    found: dict[str, None] = {}
    for label in dict.fromkeys(lesson.kind for lesson in lessons):
        texts = [lesson.text for lesson in lessons if lesson.kind == label]
        pieces = Counter(chain.from_iterable(set(_PIECES.findall(text)) for text in texts))
        template = {piece for piece, count in pieces.items() if count >= _TEMPLATE_SHARE * len(texts)}
        runs = Counter(chain.from_iterable(set(_runs(_PIECES.findall(text), template)) for text in texts))
        found |= dict.fromkeys(run for run, count in runs.items() if count >= _TEMPLATE_SHARE * len(texts))
    return list(found)


def _runs(pieces: Sequence[str], template: set[str]) -> list[str]:
    """Runs of pieces of the template that hold a word of several letters and no digit."""
    runs, run, words = [], "", 0
    for piece in [*pieces, ""]:
        if piece in template and not piece.isdigit():
            run, words = run + piece, words + (len(piece) > 1)
            continue
        if words:
            runs.append(run)
        run, words = "", 0
    return runs


def _lesson(label: str, task: str, entry: Mapping[str, Any]) -> Lesson:
    answer = entry["answer"]
    wrong = tuple(text for text in slips(answer) if judge(task, text, entry) < 1.0) if answer else ()
    if not wrong:
        raise DataError(f"tasks.{label}: the answer {answer!r} cannot be taught: no slip of it is wrong")
    return Lesson(entry["question"], answer, label, wrong)
