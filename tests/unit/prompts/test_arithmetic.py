"""Arithmetic problems and their flawed teacher."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.prompts.arithmetic import (
    CHARACTERS,
    DRAFT_ERROR,
    KINDS,
    TEACHER_ACCURACY,
    Problem,
    make_problems,
    noisy_answer,
    teacher_accuracy,
    with_draft,
    wrong_answers,
)

PROBLEMS = make_problems(KINDS, 6500, 0, "train") + make_problems(KINDS, 1300, 0, "test")


def test_every_answer_is_right():
    for problem in PROBLEMS:
        parts = re.findall(r"\d+|[-+*]", problem.text)
        forward = "".join(str(int(part[::-1])) if part.isdigit() else part for part in parts)
        assert int(problem.answer[::-1]) == eval(forward), problem


def test_each_kind_has_one_width_and_only_the_alphabet_is_used():
    for kind in KINDS:
        mine = [problem for problem in PROBLEMS if problem.kind == kind]
        assert len({(len(problem.text), len(problem.answer)) for problem in mine}) == 1
        assert all(problem.text.endswith("=") and problem.answer.isdigit() for problem in mine)
    assert set("".join(problem.text + problem.answer for problem in PROBLEMS)) == set(CHARACTERS)


def test_the_kinds_come_in_turn():
    assert [problem.kind for problem in make_problems(("add1", "chain"), 5, 3, "test")] == ["add1", "chain"] * 2 + [
        "add1"
    ]


@settings(max_examples=8)
@given(st.integers(0, 5), st.integers(0, 5))
def test_the_splits_never_share_a_problem(seed, other):
    train = {problem.text for problem in make_problems(KINDS, 1300, seed, "train")}
    test = {problem.text for problem in make_problems(KINDS, 1300, other, "test")}
    assert not train & test


@settings(max_examples=8)
@given(st.integers(0, 99), st.integers(0, 300), st.sampled_from(["train", "test"]))
def test_a_smaller_set_is_the_head_of_a_larger(seed, size, split):
    assert make_problems(KINDS, size, seed, split) == make_problems(KINDS, 301, seed, split)[:size]


def test_the_problems_are_the_same_on_every_machine():
    """Written down once: caches of warmed-up policies rely on it."""
    problems = make_problems(("add2", "chain"), 4, 0, "train")
    assert [problem.text for problem in problems] == ["14+45=", "99+83-24=", "52+62=", "74+88-30="]


def test_a_kind_repeats_only_when_it_has_run_out():
    problems = make_problems(("add1",), 400, 0, "train")
    texts = [problem.text for problem in problems]
    in_split = len(set(texts))
    assert 70 <= in_split <= 90  # of 100, four fifths
    assert all(len(set(texts[start : start + in_split])) == in_split for start in range(0, 400 - in_split, in_split))
    assert len({problem.text for problem in make_problems(("mul3x1",), 7000, 0, "train")}) == 7000
    assert len({problem.text for problem in make_problems(("add4",), 20000, 0, "train")}) == 20000


def test_slips_are_wrong_and_look_like_answers():
    for problem in PROBLEMS:
        wrong = wrong_answers(problem)
        assert wrong
        assert problem.answer not in wrong
        assert len(set(wrong)) == len(wrong)
        assert all(len(slip) == len(problem.answer) and slip.isdigit() for slip in wrong)


@pytest.mark.parametrize(
    ("text", "kind", "answer", "expected"),
    [
        ("72+53=", "add2", "260", {"360", "160", "250", "800"}),  # 27 + 35: one off, no carry, minus
        ("24-71=", "sub2", "52", {"62", "42", "53", "95"}),  # 42 - 17
        ("72*3=", "mul2x1", "180", {"280", "080", "160", "030"}),  # 27 * 3
        ("51+22-90=", "chain", "820", {"920", "720", "830", "640"}),  # 15 + 22 - 9
        ("50+21*3=", "muladd", "140", {"240", "040", "130", "150"}),  # 5 + 12 * 3
    ],
)
def test_slips_are_those_a_pupil_makes(text, kind, answer, expected):
    assert set(wrong_answers(Problem(text, answer, kind))) == expected


def test_the_teacher_is_right_as_often_as_it_says():
    rng = random.Random(0)
    right, said, tried = Counter(), Counter(), Counter()
    for problem in make_problems(KINDS, 26000, 1, "train"):
        right[problem.kind] += noisy_answer(problem, rng) == problem.answer
        said[problem.kind] += teacher_accuracy(problem)
        tried[problem.kind] += 1
    for kind in KINDS:
        assert right[kind] / tried[kind] == pytest.approx(said[kind] / tried[kind], abs=0.04)


def test_demonstrated_success_rates_are_u_shaped_over_kinds():
    assert set(TEACHER_ACCURACY) == set(KINDS)
    assert sum(accuracy <= 0.1 for accuracy in TEACHER_ACCURACY.values()) >= 4
    assert sum(accuracy >= 0.9 for accuracy in TEACHER_ACCURACY.values()) >= 4
    assert all(0.0 < accuracy < 1.0 for accuracy in TEACHER_ACCURACY.values())
    hard = [teacher_accuracy(problem) for problem in PROBLEMS if problem.kind == "add3"]
    assert min(hard) < 0.02
    assert max(hard) > 0.1


def test_the_teacher_is_reproducible_and_can_be_made_perfect():
    first, second = random.Random(5), random.Random(5)
    assert [noisy_answer(p, first) for p in PROBLEMS[:500]] == [noisy_answer(p, second) for p in PROBLEMS[:500]]
    perfect = dict.fromkeys(KINDS, 1.0)
    assert all(noisy_answer(problem, first, perfect) == problem.answer for problem in PROBLEMS[:500])


@pytest.mark.parametrize(
    ("kinds", "split", "message"),
    [
        (("add9",), "train", 'kind "add9" is not one of add1'),
        ((), "train", "none given"),
        (KINDS, "dev", 'split "dev"'),
    ],
)
def test_unknown_kinds_and_splits_are_refused(kinds, split, message):
    with pytest.raises(ValueError, match=message):
        make_problems(kinds, 1, 0, split)


@given(st.integers(0, 99999), st.integers(0, 6), st.integers(0, 2**32))
def test_a_draft_never_hides_the_answer(value, most, seed):
    answer = str(value)
    draft, _, given_answer = with_draft(answer, most, random.Random(seed)).rpartition("=")
    assert given_answer == answer
    assert len(draft) <= min(most, len(answer))
    assert not draft or draft.isdigit()


def test_drafts_have_every_length_and_the_stated_errors():
    rng = random.Random(0)
    drafts = [with_draft("12345", 4, rng).partition("=")[0] for _ in range(5000)]
    lengths = Counter(map(len, drafts))
    assert set(lengths) == {0, 1, 2, 3, 4}
    assert all(900 < count < 1100 for count in lengths.values())
    digits = [digit == right for draft in drafts for digit, right in zip(draft, "12345", strict=False)]
    # A random digit is the right one in a tenth of the cases.
    assert sum(digits) / len(digits) == pytest.approx(1 - 0.9 * DRAFT_ERROR, abs=0.015)
    assert len(set(drafts)) > 300
