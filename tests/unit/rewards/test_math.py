"""The math verifier: right answers in other notation earn 1, answers that one slip changed earn 0."""

import json
import random
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_answers import PAIRS

from kray.bench.math_pairs import FAMILIES, pairs
from kray.bench.math_pairs.rates import Pair, rates
from kray.rewards import Reward, score
from kray.rewards.mathematics.evaluation import constant
from kray.rewards.mathematics.expressions import read
from kray.rewards.mathematics.extraction import final_answers
from kray.rewards.mathematics.notation import normalize
from kray.rewards.mathematics.tokens import Unreadable
from kray.rewards.mathematics.units import read_unit
from kray.rewards.responses import outside_thinking

FRAGMENTS = [
    "\\frac",
    "{",
    "}",
    "1",
    "2",
    "x",
    "^",
    "_",
    "\\sqrt",
    "(",
    ")",
    "[",
    "]",
    "|",
    "\\pm",
    "!",
    ",",
    "=",
    "<",
    "\\text{",
    "and",
    ":",
    "-",
    "%",
    "\\boxed{",
    "####",
    "$",
    "\\cup",
    "\\{",
    "\\}",
    "\\begin{pmatrix}",
    "&",
    "_{8}",
    "or",
]
ATTACKS = Path(__file__).with_name("math_attacks.jsonl")
CASES = Path(__file__).parents[4] / "shared" / "cases" / "math_pairs.jsonl"

MATH = [
    # (right answer, response, value)
    ("72", "#### 72", 1),
    ("x = <<1+2=3>> ...\n#### 1,000", "The answer is $1000.", 1),
    ("... #### 72", "so \\boxed{72}", 1),
    ("72", "#### $72.00", 1),
    ("72", "#### 72 clips\nnext question", 1),
    ("72", "#### The answer is 72.", 1),
    ("72", "\\boxed{72 \\text{ clips}}", 1),
    ("72", "\\boxed{\\$72}", 1),
    ("72", "**72**", 1),
    ("72", "\\boxed{71}, or rather \\boxed{72}", 1),
    ("72", "\\boxed{72}, or rather \\boxed{71}", 0),
    ("72", "", 0),
    ("72", "####", 0),
    ("72", "\\boxed{}", 0),
    ("72", "\\boxed{72", 0),
    ("72", "I do not know", 0),
    ("$18", "#### 18", 1),
    ("\\$18", "18", 1),
    ("50%", "\\boxed{50\\%}", 1),
    ("50%", "0.5", 1),
    ("50\\%", "50%", 1),
    ("\\frac12", "\\boxed{0.5}", 1),
    ("1/2", "\\frac{1}{2}", 1),
    ("\\frac{1}{2}", "the answer is 1/2", 1),
    ("\\frac{1}{2}", "#### \\frac{1}{2}", 1),
    ("2\\frac{1}{2}", "\\boxed{2.5}", 1),
    ("0.333333", "1/3", 1),
    ("0.3333", "1/3", 0),
    ("3.50", "It costs $3.5", 1),
    ("x^2+1", "\\boxed{1+x^2}", 1),
    ("\\boxed{\\sqrt{2}}", "$\\sqrt2$", 1),
    ("(1,2)", "(1,2)", 1),
    ("(1,2)", "\\boxed{(2,1)}", 0),
    ("2", "\\boxed{x=2}", 1),
    ("-5", "answer: -5", 1),
    ("5", "answer: -5", 0),
    ("4", "First 3, then 4", 1),
    ("3", "First 3, then 4", 0),
    ("1000000", "#### 1,000,000", 1),
    ("10", "1,0", 0),
    ("2,125", "#### 2,1251", 0),
    ("2", "\\boxed{1,2}", 0),
    ("1,2", "\\boxed{1,2}", 1),
    ("No solution", "\\boxed{No solution}", 1),
]


def judge(response: str, answer: str) -> float:
    return score("math", response, answer).value


@pytest.mark.parametrize(("answer", "response", "value"), MATH)
def test_common_answers(answer, response, value):
    reward = score("math", response, answer)
    assert reward.value == value
    assert (reward.detail == "") == (value == 1)


def test_every_listed_pair_earns_what_it_is_worth():
    assert [pair for pair in PAIRS if judge(pair[1], pair[0]) != pair[2]] == []


def test_misleading_answers_earn_what_they_are_worth():
    rows = [json.loads(line) for line in ATTACKS.read_text(encoding="utf-8").splitlines()]
    assert [row for row in rows if judge(row["response"], row["answer"]) != row["reward"]] == []


@pytest.mark.parametrize(
    ("answer", "response", "plain", "finished"),
    [
        ("17", "2 + 15 is 2 + 15.", 1, 0),
        ("17", "2 + 15 equals 17.", 1, 1),
        ("17", "2 + 15 = 17", 1, 1),
        ("17", "\\boxed{2 + 15}", 1, 0),
        ("17", "\\boxed{2 + 15 = 17}", 1, 1),
        ("17", "\\boxed{20 - 3}", 1, 0),
        ("12", "It is 4 \u00d7 3.", 1, 0),
        ("12", "\\boxed{4 \\times 3}", 1, 0),
        ("-5", "\\boxed{-5}", 1, 1),
        ("0.5", "\\boxed{\\frac{1}{2}}", 1, 1),
        ("17", "\\boxed{17}", 1, 1),
        ("2+3i", "\\boxed{2 + 3i}", 1, 1),
    ],
)
def test_finished_answers_leave_no_arithmetic_to_be_done(answer, response, plain, finished):
    assert score("math", response, answer).value == plain
    assert score("math", response, answer, finished=True).value == finished


@pytest.mark.parametrize("filler", [" ", "\n", "of the aa ", "or ", "$", "#### ", "1 ", "\\boxed{1} "])
def test_long_fillers_take_no_time(filler):
    text = filler * (20_000 // len(filler))
    started = time.perf_counter()
    judge(f"\\boxed{{61}}{text}x\\boxed{{61}}", "61")
    judge(f"the answer {text} is 61", "61")
    assert time.perf_counter() - started < 2.0


@pytest.mark.skipif(not CASES.exists(), reason="the collected pairs are not part of the repository")
def test_collected_pairs_are_within_the_error_bounds():
    lines = CASES.read_text(encoding="utf-8").splitlines()
    rows = [Pair(row["answer"], row["response"], row["reward"]) for row in map(json.loads, lines)]
    figures, wrong = rates(judge, rows)
    assert figures["false_positive_rate"] <= 0.02, wrong
    assert figures["false_negative_rate"] <= 0.05, wrong


@settings(max_examples=400)
@given(st.sampled_from(sorted(FAMILIES)), st.integers(0, 2**32))
def test_notation_counts_for_nothing_and_one_slip_for_all(family, seed):
    drawn = FAMILIES[family](random.Random(seed))
    assert [text for text in drawn.same if judge(f"\\boxed{{{text}}}", drawn.answer) != 1] == [], drawn.answer
    wrong = [text for text in drawn.different if text != drawn.answer]
    assert [text for text in wrong if judge(f"\\boxed{{{text}}}", drawn.answer) != 0] == [], drawn.answer


def test_generated_pairs_cover_every_family():
    assert {name for name, *_ in pairs(len(FAMILIES), 0)} == set(FAMILIES)


@settings(max_examples=200)
@given(st.sampled_from(sorted(FAMILIES)), st.integers(0, 2**32))
def test_committing_to_a_second_answer_earns_nothing(family, seed):
    drawn = FAMILIES[family](random.Random(seed))
    other = next(text for text in drawn.different if text != drawn.answer)
    right, wrong = f"\\boxed{{{drawn.answer}}}", f"\\boxed{{{other}}}"
    assert judge(f"{wrong} or {right}", drawn.answer) == 0
    assert judge(f"{wrong}\n#### {drawn.answer}", drawn.answer) == 0
    assert judge(f"{right}\n#### {other}", drawn.answer) == 0
    assert judge(f"{right} and again {right}", drawn.answer) == 1
    assert judge(f"<think>{wrong}</think> So {right}.", drawn.answer) == 1
    assert judge(f"<think>{right}</think> So {wrong}.", drawn.answer) == 0
    assert judge(f"<think>{right}", drawn.answer) == 0


@settings(max_examples=100)
@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_integers_are_equal_exactly_when_they_are(number, right):
    for form in (f"#### {number}", f"\\boxed{{{number:,}}}", f"It is {number}."):
        assert judge(form, f"work\n#### {right:,}") == float(number == right)
        assert judge(form, str(number)) == 1.0


@settings(max_examples=200)
@given(st.decimals(-1000, 1000, places=9), st.decimals(-1000, 1000, places=9), st.integers(-12, 12))
def test_decimals_are_compared_relatively_at_every_scale(a, b, exponent):
    first, second = (f"{number:f}e{exponent}" for number in (a, b))
    assert judge(f"\\boxed{{{first}}}", second) == float(a == b)


@settings(max_examples=200)
@given(st.fractions(), st.fractions())
def test_fractions_are_compared_exactly(a, b):
    assert judge(f"\\boxed{{\\frac{{{a.numerator}}}{{{a.denominator}}}}}", f"{b.numerator}/{b.denominator}") == float(
        a == b
    )


@settings(max_examples=100)
@given(st.text(max_size=60))
def test_any_response_is_judged(response):
    assert judge(response, "72") in (0.0, 1.0)
    assert judge(f"\\boxed{{{response}}}", "\\frac{x}{2}") in (0.0, 1.0)


@settings(max_examples=200)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30))
def test_any_mathematics_is_judged(parts):
    text = "".join(parts)
    assert judge(text, "72") in (0.0, 1.0)
    assert judge(f"\\boxed{{{text}}}", "(1, 2]") in (0.0, 1.0)


def test_it_works_off_the_main_thread():
    rewards = []
    thread = threading.Thread(target=lambda: rewards.append(score("math", "\\boxed{x+1}", "1+x")))
    thread.start()
    thread.join(30)
    assert rewards == [Reward(1.0)]


@pytest.mark.parametrize(
    "answer", ["####", "", " ", "$$", "()", "\\text{}", ".", "\u200b", "<think>5</think>", "<answer></answer>"]
)
def test_a_right_answer_that_says_nothing_is_an_error(answer):
    with pytest.raises(ValueError, match="no right answer"):
        score("math", "72", answer)


def _expressions() -> st.SearchStrategy[tuple[str, Fraction | None]]:
    """Text of an expression, with its value; None where it has none."""
    numbers = st.fractions(min_value=0, max_value=50, max_denominator=9).map(
        lambda f: (f"\\frac{{{f.numerator}}}{{{f.denominator}}}" if f.denominator > 1 else f"{f.numerator}", f)
    )

    def grown(inner):
        both = st.tuples(inner, inner)
        return st.one_of(
            both.map(lambda p: (f"({p[0][0]}+{p[1][0]})", _op(lambda a, b: a + b, p))),
            both.map(lambda p: (f"({p[0][0]}-{p[1][0]})", _op(lambda a, b: a - b, p))),
            both.map(lambda p: (f"({p[0][0]}) \\cdot ({p[1][0]})", _op(lambda a, b: a * b, p))),
            both.map(lambda p: (f"({p[0][0]})({p[1][0]})", _op(lambda a, b: a * b, p))),
            both.map(lambda p: (f"\\frac{{{p[0][0]}}}{{{p[1][0]}}}", _op(lambda a, b: a / b, p))),
            inner.map(lambda e: (f"\\left({e[0]}\\right)^{{2}}", None if e[1] is None else e[1] ** 2)),
            inner.map(lambda e: (f"-({e[0]})", None if e[1] is None else -e[1])),
            inner.map(
                lambda e: (f"|{e[0]}|" if "|" not in e[0] else e[0], e[1] if "|" in e[0] or e[1] is None else abs(e[1]))
            ),
        )

    return st.recursive(numbers, grown, max_leaves=8)


def _op(operator, operands):
    (_, a), (_, b) = operands
    try:
        return None if a is None or b is None else operator(a, b)
    except ZeroDivisionError:
        return None


@settings(max_examples=300)
@given(_expressions())
def test_expressions_have_the_value_that_they_say(expression):
    text, value = expression
    if value is None:
        with pytest.raises(ArithmeticError):
            constant(read(normalize(text)))
    else:
        assert constant(read(normalize(text))) == value


@pytest.mark.parametrize(
    "text", ["61 62", "1 +", "\\foo{3}", "61 @ 3", "(1", "2)", "x_", "3!!", "", "\\frac{1}", "7 \\to 8"]
)
def test_what_is_not_understood_as_a_whole_is_not_read(text):
    with pytest.raises(Unreadable):
        read(text)


@pytest.mark.parametrize(
    ("response", "answers"),
    [
        ("\\boxed{1}\n#### 2", ["1", "2"]),
        ("\\boxed{1} The final answer is 2.", ["1", "2"]),
        ("\\boxed{1} is the answer.", ["1"]),
        ("$-\\boxed{1}$", [""]),
        ("<answer>1</answer> \\boxed{2}", ["1", "2"]),
        ("so <answer>\\boxed{1}</answer>", ["1"]),
        ("<answer>We get 3 + 4 = 7</answer>", ["7"]),
        ("\\boxed{1} or 2", ["1", "2"]),
        ("\\boxed{1} and \\boxed{2}", ["{1} , {2}"]),
        ("\\boxed{1}, no: \\boxed{2}", ["2"]),
        ("\\boxed{1} \\boxed{", [""]),
        ("#### Final Answer\nThe answer is 5.", ["5"]),
        ("#### 5\nThat is all.", ["5"]),
        ("The answer is 7, since 8 is too large.", ["7"]),
        ("We have 3 cats.\nTogether: 3 + 4 = 7", ["7"]),
        ("It is 2 + 15 which equals 20.", ["20"]),
        ("The sum is 2 + 15, which gives 20.", ["20"]),
        ("We get 7, which is the smallest of all 9.", ["7"]),
        ("We get 7, which holds for all 9.", ["7"]),
    ],
)
def test_the_final_answers_of_a_response(response, answers):
    assert [found.text for found in final_answers(response)] == answers


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<think>a</think>b<think>c</think>d", "bd"),
        ("a<think>b", "a"),
        ("<THINKING>a</THINKING>b", "b"),
        ("a", "a"),
    ],
)
def test_thoughts_never_count(text, rest):
    assert outside_thinking(text) == rest


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("cm", "centimeters"),
        ("square inches", "in^2"),
        ("km/h", "kilometers per hour"),
        ("apples", "apple"),
        ("", "exactly"),
    ],
)
def test_units_that_are_the_same(words, same):
    first, second = read_unit(words), read_unit(same)
    assert first is not None
    assert first == second


@pytest.mark.parametrize("words", ["or more", "of 200", "and a half", "not", "hundredths", "below zero"])
def test_words_that_are_no_unit(words):
    assert read_unit(words) is None
