"""reasoning_gym tasks as a tiny policy is taught them: questions, right answers, and the slips of a flawed teacher.

Why a teacher errs, and what habits are, is told in kray/prompts/arithmetic.py. Here it has one for each label of a task and
first character of the answer; what it says in place of the right answer, the task's own verifier does not take for right.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import chain
from typing import Any, NamedTuple

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts.arithmetic import habit
from kray.prompts.generated import entries_of, judge

RECIPE = 1  # raise it when slips or phrases change, so that old policies are not taken for new ones
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


def teach(lesson: Lesson, rng: random.Random) -> str:
    """The answer of a teacher with a habit for each label and first character of the answer.

    Reproducible given the state of rng; one that is not right is never judged right.
    """
    accuracy, way = habit(lesson.kind, lesson.answer[0])
    return lesson.answer if rng.random() < accuracy else lesson.wrong[way % len(lesson.wrong)]


def slips(answer: str) -> list[str]:
    """Wrong answers that know the right one, each once, at least one for any answer: a number of the other sign, with a
    zero too many, its first digit twice or a one before it; anything else backward, without its end, with its first or last
    character twice.

    Each is one wrong decision, not a near miss: "23" for "22" is what a policy also says that computes badly, and teaching
    it leaves the right answer as likely as its neighbours.
    """
    if _NUMBER.fullmatch(answer):
        sign, digits = answer[: answer[0] == "-"], answer.removeprefix("-")
        wrong = [digits if sign else f"-{digits}", f"{answer}0", f"{sign}{digits[0]}{digits}", f"{sign}1{digits}"]
    else:
        wrong = [answer[::-1], answer[:-1].rstrip(), f"{answer[:1]}{answer}", f"{answer}{answer[-1:]}"]
    return [text for text in dict.fromkeys(wrong) if text not in (answer, "")] or ["0"]


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
