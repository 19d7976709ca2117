"""What a response says outside of thinking, and its final answer in a sentence."""

from __future__ import annotations

import json
import time
from functools import cache

import pytest
import reasoning_gym
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.prompts.generated import _pack as pack_entry
from kray.rewards import score
from kray.rewards.responses import outside_thinking
from kray.rewards.sentences import answer_candidates

PIECES = st.lists(st.sampled_from(["<think>", "</think>", "a", "b", "\n"]), max_size=8)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("42", "42"), ("<think>7</think>42", "42"), ("<think>7", ""), ("42<think>7", "42"), ("7</think>42", "42"),
        ("1<think>7</think>2<think>8</think>3", "123"), ("<think>a<think>b</think>c</think>d", "d"), ("", ""),
        ("7</think>8</think>42", "42"), ("<think>a</think>b</think>", ""), ("<THINK>7</THINK>6", "6"),
        ("<thinking>7</thinking>6", "6"),
    ],
)  # fmt: skip
def test_thinking_is_left_out(response, said):
    assert outside_thinking(response) == said


@given(PIECES, PIECES)
def test_what_is_thought_never_counts(thought, said):
    text = "".join(piece for piece in said if "think" not in piece)
    inner = "".join(thought)
    assert outside_thinking(f"<think>{inner.replace('</think>', '')}</think>{text}") == text
    assert outside_thinking(f"{inner}</think>{text}").removesuffix(text) in ("", outside_thinking(inner))
    assert "think>" not in outside_thinking(inner + "".join(said))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 42.", "42"),
        ("So the final answer: **42**", "42"),
        ("**Answer:** 42", "42"),
        ("### Final Answer\n\n42", "42"),
        ("I add them.\n\nThe final answer is $42$.\n\nI hope that helps!", "42"),
        ("The answer is 42, because 40 + 2 = 42.", "42"),
        ("The answer is 42 (and not 7).", "42"),
        ("The answer is 42. It was easy.", "42"),
        ("First I thought that the answer is 7. No, the answer is 42", "42"),
        ("So 42 is the answer.", "42"),
        ("\\boxed{42}", "42"),
        ("It is \\(\\boxed{\\text{yes}}\\).", "yes"),
        ("40 + 2 = 42", "42"),
        ("The sum of both is 42.", "42"),
        ("I think.\n\n42", "42"),
        ("The answer would be: `42`", "42"),
        ('The answer is "olleh".', "olleh"),
        ("The answer is:\n1 2\n3 4\n\nThat is it.", "1 2\n3 4"),
        ("The answer is:\n```\n1 2\n3 4\n```\nThat is it.", "1 2\n3 4"),
        ("The result is x = 3", "x = 3"),
        ("The answer is not 42", "not 42"),
        ("The answer is unknown", "unknown"),
        ("There is fog", "There is fog"),
        ("42", "42"),
        ("", ""),
    ],
)
def test_the_last_reading_is_the_bare_answer(text, answer):
    assert answer_candidates(text)[-1] == answer


@given(st.text(st.sampled_from("ab 1.*`_\n:=<>\\{}$"), max_size=60) | st.text(max_size=60))
def test_any_text_has_some_readings(text):
    found = answer_candidates(text)
    assert found
    assert len(found) == len(set(found)) <= 50
    assert all(reading in text or reading[:-1] in text for reading in found)


@pytest.mark.parametrize(
    "piece", ["answer ", "is ", "answer is ", ". ", "*", "_", "`", "```", "\n", " (", "=", "\\(", "<think>"]
)
def test_readings_of_long_texts_are_quick(piece):
    text = "The answer is " + piece * (50_000 // len(piece))
    started = time.process_time()
    answer_candidates(outside_thinking(text))
    answer_candidates(piece * (50_000 // len(piece)) + "x")
    assert time.process_time() - started < 2


TASKS = (
    "chain_sum", "gcd", "basic_arithmetic", "spell_backward", "letter_counting", "propositional_logic", "knights_knaves",
    "family_relationships", "syllogism", "circuit_logic", "aiw", "calendar_arithmetic", "number_sorting", "word_sorting",
    "simple_equations", "countdown", "mini_sudoku", "spiral_matrix", "rotate_matrix", "sentence_reordering", "count_primes",
    "decimal_arithmetic", "fraction_simplification", "prime_factorization", "base_conversion", "time_intervals",
)  # fmt: skip
ONE_LINE = (
    "{}", "The answer is {}.", "The answer is {}", "So the final answer: **{}**", "I add.\n\nAnswer: {}", "**Answer:** {}",
    "\\boxed{{{}}}", "<think>The answer is nought.</think>The answer is {}.", "Final answer:\n\n{}",
    "The correct answer is:\n```\n{}\n```\nI am sure.", "Let me see.\n\n{}",
    "<think>\\boxed{{0}}</think>\n**Final Answer**\n{}",
)  # fmt: skip


@cache
def entry(task: str, index: int):
    """(packed answer, a right answer) of one problem."""
    found = reasoning_gym.create_dataset(task, seed=5, size=8)[index]
    return pack_entry(task, found), str(found["answer"] or found["metadata"]["example_answer"])


@settings(max_examples=300)
@given(st.sampled_from(TASKS), st.integers(0, 7), st.sampled_from(ONE_LINE))
def test_a_right_answer_in_a_sentence_earns_1(task, index, sentence):
    packed, right = entry(task, index)
    assert score("reasoning_gym", sentence.format(right), packed, extract=True).value == 1


@settings(max_examples=300)
@given(st.sampled_from(TASKS), st.integers(0, 7), st.integers(0, 7), st.sampled_from(ONE_LINE))
def test_a_wrong_one_earns_what_the_task_gives_it(task, index, other, sentence):
    packed, wrong = entry(task, index)[0], entry(task, other)[1]
    bare = score("reasoning_gym", wrong, packed).value
    assert score("reasoning_gym", sentence.format(wrong), packed, extract=True).value == pytest.approx(bare)
    full = float(bare >= 1)
    assert score("reasoning_gym", sentence.format(wrong), packed, extract=True, partial=False).value == full


@settings(max_examples=100)
@given(st.sampled_from(TASKS), st.integers(0, 7))
def test_thinking_and_hedging_earn_no_full_marks(task, index):
    packed, right = entry(task, index)
    for response in (
        f"<think>The answer is {right}</think>",
        f"<think><answer>{right}</answer></think>",
        f"<answer>{right}</answer></think>I do not know",
        f"<think>I am cut off. The answer is {right}",
        f"The answer is {right}. No, the answer is quite unknown",
        f"<think><answer>{right}</answer></think><answer>quite unknown</answer>",
    ):
        assert score("reasoning_gym", response, packed, extract=True).value < 1, response
    assert score("reasoning_gym", f"<think>x</think>So <answer>{right}</answer>", packed).value == 1


def test_a_value_at_the_end_of_a_line_earns_1():
    packed, right = entry("spell_backward", 0)
    assert score("reasoning_gym", f"Backward it is {right}.", packed, extract=True).value == 1
    packed, right = entry("chain_sum", 0)
    assert score("reasoning_gym", f"1 + 2 = {right}", packed, extract=True).value == 1


def test_a_sentence_earns_partial_credit_without_the_option():
    packed, right = entry("chain_sum", 0)
    assert 0 < score("reasoning_gym", f"The answer is {right}.", packed).value < 1
    assert score("reasoning_gym", f"The answer is {right}.", packed, partial=False).value == 0


@pytest.mark.parametrize("task", ["prime_factorization", "boxnet", "coin_flip", "game_of_life"])
def test_what_a_task_cannot_read_is_wrong(task):
    """The scoring of these raises: a policy would have made data failures of its wrong answers."""
    found = reasoning_gym.create_dataset(task, seed=3, size=1)[0]
    for response in ("no", "[[1,2],[3]", "1e999", "{}", '{"a": 1}', "[1]"):
        assert score("reasoning_gym", response, pack_entry(task, found)).value < 1


def test_an_entry_that_cannot_be_scored_is_an_error():
    with pytest.raises((ValueError, KeyError, TypeError)):
        score("reasoning_gym", "no", json.dumps({"task": "prime_factorization", "entry": {"answer": "x"}}))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("No, it does not logically follow that some spiders are birds.", "No"),
        ("The answer is: No, it does not", "No"),
        ("**Yes**, because all birds are.", "Yes"),
        ("Yes - it does", "Yes"),
        ("I think.\n\nTrue. All of them are.", "True"),
        ("Yes, it follows that no spiders are birds", "Yes"),
        ("No.\n\nThis is a classic", "No"),
    ],
)
def test_the_word_that_opens_a_sentence_is_an_answer(text, verdict):
    assert verdict in answer_candidates(text)


@pytest.mark.parametrize(
    "text",
    [
        "Yes. No.",
        "No, wait. Yes, it does",
        "No.\n\nYes, I mean, no.",
        "No one knows, yes",
        "no-one, he said",
        "Nothing, really",
    ],
)
def test_two_verdicts_are_no_answer(text):
    assert not {"yes", "no", "nothing"} & {candidate.lower() for candidate in answer_candidates(text)}


def test_a_verdict_in_a_sentence_earns_full_marks():
    entries = reasoning_gym.create_dataset("syllogism", size=20, seed=3)
    entry = next(each for each in entries if each["answer"] == "No")
    packed = pack_entry("syllogism", entry)
    assert score("reasoning_gym", "No, it does not follow.", packed, extract=True, partial=False).value == 1
    assert score("reasoning_gym", "Yes, it does follow.", packed, extract=True, partial=False).value == 0
    assert score("reasoning_gym", "Yes. No.", packed, extract=True, partial=False).value == 0
