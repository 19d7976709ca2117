"""Hostile mathematics: whatever LaTeX the policy writes is judged by the deadline, and the fault is not the data's."""

import asyncio

import pytest

from kray.rewards import Scorer, score
from kray.rewards.mathematics import final_answer


def test_memory_that_a_judgement_takes_is_bounded(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    with Scorer("verdicts:takes_memory", memory_gib=0.5) as scorer:
        outcomes = asyncio.run(scorer.score([("", "0.1", ""), ("", "2", ""), ("", "0.1", "")]))
    assert [outcome.reward for outcome in outcomes] == [1.0, None, 1.0]
    assert outcomes[1].error.startswith("MemoryError")


@pytest.mark.parametrize("digits", [100, 4001, 100_000])
def test_numbers_of_any_length_are_compared(digits):
    long = "7" * digits
    assert score("math", f"#### {long}", f"#### {long}").value == 1.0
    assert score("math", f"#### {long[:-1]}8", f"#### {long}").value == 0.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1} \\boxed{2", ""),
        ("\\boxed{1} } so } \\fbox {2} {", "2"),
        ("\\boxed{a \\boxed{b} c}", "a {b} c"),
        ("{\\boxed{\\frac{1}{2}}}", "\\frac{1}{2}"),
        ("\\boxed{a \\boxed{b}", "b"),
    ],
)
def test_the_last_complete_box_holds_the_answer(text, answer):
    assert final_answer(text) == (answer, True)
