"""Noisy demonstrations of reasoning_gym tasks, on which a tiny policy is warmed up: questions, right and wrong answers.

kray/prompts/arithmetic.py explains why demonstrations contain errors, and systematic errors. Here they depend on the label
of the task and the first character of the answer; no wrong answer earns full credit from the task's own scoring.
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
from kray.prompts.arithmetic import systematic_error
from kray.prompts.generated import entries_of, judge

# To be raised when wrong answers or question templates change, so that cached policies are not reused.
VERSION = 1
_PIECES = re.compile(r"[^\W\d_]+|[\s\S]")
# Share of a task's questions in which the pieces of its template occur.
_TEMPLATE_SHARE = 0.5
_NUMBER = re.compile(r"-?\d+")


class Demonstration(NamedTuple):
    """A question with its answers.

    Attributes:
        text: The question.
        answer: The right answer.
        kind: Label of the task.
        wrong: Wrong answers, at least one.
    """

    text: str
    answer: str
    kind: str
    wrong: tuple[str, ...]


def make_demonstrations(tasks: Mapping[str, Any], size: int, seed: int) -> list[Demonstration]:
    """Make demonstrations of the train split.

    Args:
        tasks: Label -> options, as in prompts.train.tasks; the labels alternate.
        size: Number of demonstrations, rounded down to a multiple of the number of labels.
        seed: Seed of the questions.

    Raises:
        DataError: A task cannot be made, or an answer has no wrong form.
    """
    each = max(1, size // len(tasks))
    source = SourceConfig(kind="reasoning_gym", split="train", seed=seed, tasks=dict(tasks))
    made = [[_demonstration(label, task, entry) for task, entry in entries_of(source, label, each)] for label in tasks]
    return list(chain.from_iterable(zip(*made, strict=True)))


def cache_key(tasks: Mapping[str, Any]) -> list[Any]:
    """Return what demonstrations depend on besides their arguments, as JSON values."""
    return [VERSION, version("reasoning-gym"), list(tasks)]


def flawed_answer(demonstration: Demonstration, rng: random.Random) -> str:
    """Draw an answer with the systematic error of the label and the answer's first character."""
    accuracy, which = systematic_error(demonstration.kind, demonstration.answer[0])
    return demonstration.answer if rng.random() < accuracy else demonstration.wrong[which % len(demonstration.wrong)]


def wrong_answers(answer: str) -> list[str]:
    """Derive wrong answers from a right one.

    Each differs by one wrong decision and is not a near miss: "23" for "22" is also the answer of a policy that computes
    badly, and demonstrating it would leave the right answer as likely as its neighbours.

    Returns:
        Different answers, at least one. Of a number: with the other sign, with an additional zero, with its first digit
        twice, with a one in front; of other text: reversed, without its end, with its first or last character twice.
    """
    if _NUMBER.fullmatch(answer):
        sign, digits = answer[: answer[0] == "-"], answer.removeprefix("-")
        wrong = [digits if sign else f"-{digits}", f"{answer}0", f"{sign}{digits[0]}{digits}", f"{sign}1{digits}"]
    else:
        wrong = [answer[::-1], answer[:-1].rstrip(), f"{answer[:1]}{answer}", f"{answer}{answer[-1:]}"]
    return [text for text in dict.fromkeys(wrong) if text not in (answer, "")] or ["0"]


def question_templates(demonstrations: Sequence[Demonstration]) -> list[str]:
    """Return the templates of the questions: the longest runs of words and signs found in half of a label's questions."""
    found: dict[str, None] = {}
    for label in dict.fromkeys(demonstration.kind for demonstration in demonstrations):
        texts = [demonstration.text for demonstration in demonstrations if demonstration.kind == label]
        pieces = Counter(chain.from_iterable(set(_PIECES.findall(text)) for text in texts))
        template = {piece for piece, count in pieces.items() if count >= _TEMPLATE_SHARE * len(texts)}
        runs = Counter(chain.from_iterable(set(_runs(_PIECES.findall(text), template)) for text in texts))
        found |= dict.fromkeys(run for run, count in runs.items() if count >= _TEMPLATE_SHARE * len(texts))
    return list(found)


def _runs(pieces: Sequence[str], template: set[str]) -> list[str]:
    """Return runs of pieces of the template that hold a word of several letters and no digit."""
    runs, run, words = [], "", 0
    for piece in [*pieces, ""]:
        if piece in template and not piece.isdigit():
            run, words = run + piece, words + (len(piece) > 1)
            continue
        if words:
            runs.append(run)
        run, words = "", 0
    return runs


def _demonstration(label: str, task: str, entry: Mapping[str, Any]) -> Demonstration:
    answer = entry["answer"]
    wrong = tuple(text for text in wrong_answers(answer) if judge(task, text, entry) < 1.0) if answer else ()
    if not wrong:
        raise DataError(f"tasks.{label}: the answer {answer!r} cannot be demonstrated: every variation of it is right")
    return Demonstration(entry["question"], answer, label, wrong)
