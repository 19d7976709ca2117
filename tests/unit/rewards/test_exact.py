"""The exact verifier: the same text, or nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.rewards import Reward, check_answer, check_verifier, score

TEXTS = st.text(st.characters(), min_size=1).filter(lambda text: text.strip() and "think>" not in text)


@given(TEXTS, TEXTS)
def test_exact_is_equality_but_for_outer_spaces(one, other):
    assert score("exact", one, other).value == float(one.strip() == other.strip())
    assert score("exact", one, other, strip=False).value == float(one == other)
    assert score("exact", f" {one}\n", one).value == 1
    assert score("exact", f" {one}\n", one, strip=False).value == 0


@given(TEXTS, TEXTS)
def test_one_character_more_is_wrong(text, more):
    right = text.strip()
    for given_text in (right + more.strip(), more.strip() + right, right + ".", right + "\0", right + "\u200b"):
        assert score("exact", given_text, right).value == 0


@given(TEXTS, TEXTS)
def test_the_detail_of_any_text_is_printable(one, other):
    assert score("exact", one, other).detail.isprintable()


@pytest.mark.parametrize(
    ("response", "answer", "value"),
    [
        ("1.0", "1", 0), ("True", "1", 0), ("nan", "NaN", 0), ("\u0661", "1", 0), ("\u00e9", "e\u0301", 0), ("4 2", "42", 0),
        ("", "42", 0), ("<think>42</think>", "42", 0), ("<think>42", "42", 0), ("<think>7</think>\n42", "42", 1),
        ("7</think>42", "42", 1), ("42 <think>7</think>", "42", 1), ("<think>42</think>7", "42", 0),
        ("<think>", "<think>", 1),
    ],
)  # fmt: skip
def test_exact_takes_nothing_for_the_same(response, answer, value):
    assert score("exact", response, answer).value == value


@pytest.mark.parametrize("answer", ["", " \n", "\u00a0"])
def test_an_empty_right_answer_is_refused(answer):
    with pytest.raises(ValueError, match="exact: the right answer is empty"):
        check_answer("exact", answer)
    with pytest.raises(ValueError, match="exact: the right answer is empty"):
        score("exact", "", answer)


def test_case_counts_unless_asked():
    assert score("exact", "STRASSE", "stra\u00dfe", case_sensitive=False) == Reward(1.0)
    assert score("exact", "STRASSE", "stra\u00dfe").value == 0


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("64=640", 1), ("=640", 1), ("= 640\n", 1), ("1=2=640", 1), ("640=640", 1), ("==640", 1),
        ("<think>=7</think>64=640", 1),
        # no marker, a marker behind the answer, nothing behind it, something else behind the last one
        ("640", 0), ("", 0), ("640=", 0), ("=", 0), ("=640=", 0), ("=640=64", 0), ("640=64", 0), ("=640 640", 0), ("=6400", 0),
        # other characters that look like the marker, and answers that are only thought
        ("64\uff1d640", 0), ("64 equals 640", 0), ("<think>64=640</think>", 0), ("<think>64=640", 0),
        ("<think>64=</think>640", 0), ("=64<think>=640", 0), ("=640</think>=64", 0),
    ],
)  # fmt: skip
def test_behind_a_marker_only_what_follows_the_last_one_counts(response, value):
    assert score("exact", response, "640", after="=").value == value


@given(st.text(st.characters()), TEXTS, st.sampled_from(["=", "####", "answer:"]))
def test_whatever_stands_before_the_marker_the_answer_behind_it_decides(before, answer, marker):
    # "#####" is the marker "####" before "#", or behind it.
    if (marker + answer).rfind(marker) or "<" in before + answer or "\u25c1" in before + answer:
        return
    assert score("exact", f"{before}{marker}{answer}", answer, after=marker).value == 1
    assert score("exact", f"{before}{marker}{answer}{marker}", answer, after=marker).value == 0


def test_other_options_hold_behind_a_marker_too():
    assert score("exact", "x # PARIS ", "Paris", after="#", case_sensitive=False).value == 1
    assert score("exact", "x #Paris ", "Paris", after="#", strip=False).value == 0
    assert score("exact", "x #Paris", "Paris", after="#", strip=False).value == 1


def test_a_marker_that_no_response_could_satisfy_is_refused():
    with pytest.raises(ValueError, match="right answer 'a=1' holds the marker '='"):
        score("exact", "a=1", "a=1", after="=")
    with pytest.raises(ValueError, match="option after must be a text"):
        check_verifier("exact", after=1)
    check_verifier("exact", after="=", strip=False)
