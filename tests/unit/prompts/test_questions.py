import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts import load_prompts
from kray.prompts.questions import KINDS, make_questions
from kray.rewards.mathematics import verify_math

# The right answer, computed from the question's text alone.
SOLVE = {
    "sum": lambda n, text: n[0] + n[1],
    "difference": lambda n, text: n[0] - n[1],
    "product": lambda n, text: n[0] * n[1],
    "half": lambda n, text: n[0] // 2,
    "total": lambda n, text: n[0] + n[1],
    "boxes": lambda n, text: n[0] * n[1],
    "letters": lambda n, text: len(re.search(r'"(\w+)"', text)[1]),
    "largest": lambda n, text: max(n),
}


@given(seed=st.integers(0, 10**6), split=st.sampled_from(["train", "test"]))
def test_answers_follow_from_the_questions(seed, split):
    for question in make_questions(KINDS, 24, seed, split):
        numbers = [int(number) for number in re.findall(r"\d+", question.text)]
        assert int(question.answer) == SOLVE[question.kind](numbers, question.text) >= 1


def test_every_kind_has_a_solution_here():
    assert set(SOLVE) == set(KINDS)


def test_splits_share_no_question_and_seeds_repeat():
    train, test = ({q.text for q in make_questions(KINDS, 2000, 0, split)} for split in ("train", "test"))
    assert not train & test
    assert make_questions(KINDS, 50, 3, "train") == make_questions(KINDS, 80, 3, "train")[:50]
    assert make_questions(KINDS, 50, 3, "train") != make_questions(KINDS, 50, 4, "train")


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_kind_repeats_only_after_its_questions_are_used_up(kind):
    made = [question.text for question in make_questions([kind], 300, 0, "test")]
    different = len(set(made))
    assert len(set(made[:different])) >= 0.9 * different


def test_source_alternates_the_kinds_that_are_asked_for():
    source = SourceConfig(kind="questions", size=6, tasks={"sum": {}, "letters": {}})
    prompts = load_prompts(source, "math")
    assert [prompt.metadata["kind"] for prompt in prompts] == ["sum", "letters"] * 3
    assert {prompt.verifier for prompt in prompts} == {"math"}
    answer = f"The answer is {prompts[0].answer}."
    assert verify_math(answer, prompts[0].answer).value == 1


def test_unknown_kind_is_named():
    with pytest.raises(DataError, match=r"tasks\.sums: questions have no such kind; they have sum, "):
        load_prompts(SourceConfig(kind="questions", tasks={"sums": {}}), "math")
