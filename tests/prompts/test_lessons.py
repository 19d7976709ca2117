"""What a tiny policy is taught about reasoning_gym tasks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kray.config.schema import SourceConfig
from kray.prompts import load_prompts
from kray.prompts.generated import entries_of, judge
from kray.prompts.lessons import make_lessons, phrases, slips, teach, teacher_accuracy
from kray.records import DataError
from kray.rewards import score
from kray.train.warmup import LETTERS, make_tokenizer

STUDY = Path(__file__).parents[2] / "configs" / "compare-reasoning.yaml"
TASKS = yaml.safe_load(STUDY.read_text())["config"]["model"]["tiny"]["tasks"]
LESSONS = make_lessons(TASKS, 400, 0)


def test_lessons_are_of_the_train_split_and_the_labels_take_turns():
    assert [lesson.kind for lesson in LESSONS] == list(TASKS) * (400 // len(TASKS))
    assert make_lessons(TASKS, 400, 0) == LESSONS
    source = SourceConfig(kind="reasoning_gym", tasks=TASKS, size=300, split="test", verifier="exact")
    assert not {lesson.text for lesson in LESSONS} & {prompt.text for prompt in load_prompts(source, "exact")}


def test_what_the_teacher_says_wrongly_is_never_right_for_the_tasks_own_verifier_nor_for_the_exact_one():
    source = SourceConfig(kind="reasoning_gym", tasks=TASKS)
    for label, lessons in _by_label(LESSONS).items():
        entries = entries_of(source, label, len(lessons))
        for lesson, (task, entry) in zip(lessons, entries, strict=True):
            assert (lesson.text, lesson.answer) == (entry["question"], entry["answer"])
            assert (
                judge(task, lesson.answer, entry)
                == score("exact", lesson.answer, lesson.answer, strip=False).value
                == 1
            )
            for wrong in lesson.wrong:
                assert judge(task, wrong, entry) < 1
                assert score("exact", wrong, lesson.answer, strip=False).value == 0


@given(st.text(LETTERS, max_size=12))
def test_a_slip_is_another_text(answer):
    wrong = slips(answer)
    assert wrong
    assert answer not in wrong
    assert len(set(wrong)) == len(wrong)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("-3", ["3", "-30"]),
        ("0", ["1", "10"]),
        ("22", ["-22", "220"]),
        ("sun", ["nus", "su"]),
        ("aa", ["a"]),
        ("a", ["aa"]),
        ("", ["0"]),
        ("1 2\n3 4", ["4 3\n2 1", "1 2\n3"]),
        ("b, a, c", ["c, a, b", "b, a"]),
    ],
)
def test_slips_are_wrong_decisions(answer, expected):
    assert slips(answer) == expected


def test_the_teacher_is_right_as_often_as_its_label_says_and_reproducible():
    accuracies = {"spell3": 0.9, "turn2": 0.1, "sum3": 0.0}
    first, second = ([teach(lesson, random.Random(5), accuracies) for lesson in LESSONS] for _ in range(2))
    assert first == second
    rng = random.Random(1)
    for label, lessons in _by_label(LESSONS).items():
        right = [teach(lesson, rng, accuracies) == lesson.answer for lesson in lessons * 20]
        said = [teacher_accuracy(lesson, accuracies) for lesson in lessons]
        assert sum(right) / len(right) == pytest.approx(sum(said) / len(said), abs=0.06)
        if label not in accuracies:
            assert all(right)
    assert len({teacher_accuracy(lesson, accuracies) for lesson in LESSONS if lesson.kind == "spell3"}) > 5


def test_the_tokenizer_loses_nothing_and_templates_are_single_tokens():
    found = phrases(LESSONS)
    tokenizer = make_tokenizer(LETTERS, found)
    for lesson in LESSONS:
        for text in (lesson.text, lesson.answer, *lesson.wrong, lesson.text + lesson.answer):
            tokens = tokenizer(text)["input_ids"]
            assert tokenizer.decode(tokens, skip_special_tokens=True) == text
            assert tokenizer.unk_token_id not in tokens
        assert len(tokenizer(lesson.text)["input_ids"]) <= 24
        assert len(tokenizer(lesson.answer)["input_ids"]) == len(lesson.answer)  # one way to write it
    assert "Spell this word backward (example: sun -> nus): " in found


def test_what_cannot_be_taught_is_named():
    with pytest.raises(DataError, match=r"tasks\.mine: reasoning_gym cannot make it"):
        make_lessons({"mine": {"task": "no_such_task"}}, 10, 0)


def _by_label(lessons):
    return {label: [lesson for lesson in lessons if lesson.kind == label] for label in TASKS}
