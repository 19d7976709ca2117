"""The plain form of arithmetic is the inverse of the form that the policy reads."""

import re

from hypothesis import given
from hypothesis import strategies as st

from kray.prompts.arithmetic import KINDS, make_problems
from kray.prompts.arithmetic_meaning import plain_number, plain_problem, problem_meaning, response_meaning
from kray.records import Prompt

PROBLEMS = make_problems(KINDS, 6500, 0, "train") + make_problems(KINDS, 1300, 0, "test")


def as_prompt(problem):
    return Prompt("p", problem.answer, "exact", "arithmetic", text=problem.text, metadata={"kind": problem.kind})


def policy_form(plain: str, text: str) -> str:
    """The plain form with the digits of each number reversed, in the widths of the text."""
    widths = iter(re.findall(r"\d+", text))
    return re.sub(r"\d+", lambda m: m.group().zfill(len(next(widths)))[::-1], plain).replace(" ", "") + "="


def test_the_plain_form_is_the_inverse_of_the_policys():
    for problem in PROBLEMS:
        plain = plain_problem(problem.text)
        assert policy_form(plain, problem.text) == problem.text
        assert problem_meaning(as_prompt(problem)) == f"{plain} = {eval(plain)}"


@given(st.integers(0, 10**9), st.integers(1, 12))
def test_a_reversed_number_of_any_width_is_read_back(number, width):
    assert plain_number(str(number).zfill(width)[::-1]) == str(number)


def test_a_response_is_shown_with_its_verdict():
    prompt = Prompt("p", "90", "exact", "arithmetic", text="26-35=", metadata={"kind": "sub2"})
    assert response_meaning(prompt, "90", 1.0) == "62 - 53 = 9; response 9, correct"
    assert response_meaning(prompt, "11", 0.0) == "62 - 53 = 9; response 11, wrong"
    assert response_meaning(prompt, "[26-35]90=90", 1.0) == "62 - 53 = 9; response 9, correct"
    assert response_meaning(prompt, "9+", 0.0) == "62 - 53 = 9; response without a number at its end, wrong"
    assert response_meaning(prompt, "90", 0.5) == "62 - 53 = 9; response 9, wrong, reward 0.5"


def test_other_prompts_have_no_meaning():
    assert response_meaning(Prompt("p", "9", "exact", "mine.jsonl", text="26-35="), "9", 1.0) == ""
    assert problem_meaning(Prompt("p", "9", "exact", "arithmetic", text="2+2?", metadata={"kind": "add1"})) == ""
