"""The summary verifier: one sentence, not too long, more than a list, with every fact."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.rewards import check_answer, score

ANSWER = json.dumps({"words": 10, "facts": [["Ann"], ["Leeds"], ["nine", "9"]]})
RIGHT = "Ann took the train to Leeds at nine."


@pytest.mark.parametrize(
    "response",
    [
        RIGHT, "At 9, Ann took the train to Leeds.", "ANN took the train to leeds at 9.", "  Ann went to Leeds at nine!\n",
        '"Ann went to Leeds at nine."', "<think>Who?</think>Ann went to Leeds at 9.", "Ann's train to Leeds left at nine.",
        "Nine was when Ann went to Leeds.", "9 was when Ann went to Leeds.", "Ann's off to Leeds, at nine.",
    ],
)  # fmt: skip
def test_a_sentence_with_all_facts_scores_1(response):
    reward = score("summary", response, ANSWER)
    assert (reward.value, reward.detail) == (1, "")


@pytest.mark.parametrize(
    ("response", "detail"),
    [
        ("", "no sentence"),
        ("...", "no sentence"),
        ("<think>Ann went to Leeds at nine.</think>", "no sentence"),
        ("Ann went to Leeds at nine", "no full stop at the end"),
        ("Did Ann go to Leeds at nine?", "no full stop at the end"),
        ("Ann went to\nLeeds at nine.", "more than one line"),
        ("Ann went to Leeds. It was nine.", "more than one sentence"),
        ("Sure! Ann went to Leeds at nine.", "more than one sentence"),
        ("ann went to Leeds at nine.", "no capital letter at the beginning"),
        ("- Ann went to Leeds at nine.", "no capital letter at the beginning"),
        ("Early in the morning Ann took the train to Leeds at nine.", "12 words, at most 10 are allowed"),
        ("Early-in-the-morning Ann/took_the train_to Leeds at nine.", "12 words, at most 10 are allowed"),
        ("Ann took the train to York at nine.", "does not name Leeds"),
        ("She took the train to it at ninety.", "does not name ann, leeds, nine"),
        ("Annie took the train to Leedsham at 9.", "does not name ann, leeds"),
        ("Ann, Leeds, nine.", "only lists the facts: too few other words"),
        ("Ann and Leeds and nine and 9.", "only lists the facts: too few other words"),
        ("Summary facts: Ann, Leeds, nine.", "only lists the facts: no words between them"),
        ("The keywords are Ann Leeds nine.", "only lists the facts: no words between them"),
    ],
)
def test_the_first_rule_that_is_broken_is_named(response, detail):
    reward = score("summary", response, ANSWER)
    assert reward.value == 0
    assert reward.detail.lower() == detail.lower()


def test_partial_gives_the_share_of_the_facts_to_a_sentence():
    for response, value in [
        (RIGHT, 1), ("Ann took the train to Leeds.", 2 / 3), ("She took the train to Leeds.", 1 / 3), ("It was late.", 0),
        ("Ann, Leeds, nine.", 0), ("Ann took the train to Leeds at nine", 0), (f"{RIGHT} {RIGHT}", 0),
    ]:  # fmt: skip
        assert score("summary", response, ANSWER, partial=True).value == pytest.approx(value), response


@settings(max_examples=100)
@given(st.text(st.sampled_from("Ann Leeds 9 the to.,!?'\n"), max_size=60) | st.text(max_size=60))
def test_any_text_is_scored_and_partial_never_gives_less(response):
    full, share = (score("summary", response, ANSWER, partial=partial).value for partial in (False, True))
    assert full in (0, 1)
    assert full <= share <= 1


@pytest.mark.parametrize("piece", ["Ann ", "Ann.", "9.", "a'", "'", '"', ". ", "to Leeds at nine "])
def test_long_texts_are_quick(piece):
    answer = json.dumps({"words": 10**6, "facts": [["Ann"], ["Leeds at nine", "9"]]})
    started = time.perf_counter()
    score("summary", piece * (50_000 // len(piece)) + ".", answer)
    assert time.perf_counter() - started < 2


def test_a_form_of_several_words_stands_as_a_whole():
    answer = json.dumps({"words": 10, "facts": [["New York", "NYC"], ["3.50"]]})
    assert score("summary", "A ride to New York costs 3.50 dollars.", answer).value == 1
    assert score("summary", "A ride to NYC costs 3.50.", answer).value == 1
    assert score("summary", "A new ride to York costs 3.50 dollars.", answer).value == 0
    assert score("summary", "A ride to New York costs 3 or 50 dollars.", answer).value == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("Ann", 'must be JSON with "words" and "facts"'),
        ("[1]", 'must be JSON with "words" and "facts"'),
        ('{"words": 9}', 'must be JSON with "words" and "facts"'),
        ('{"words": 0, "facts": [["Ann"]]}', '"words" must be a number of at least 1, not 0'),
        ('{"words": "9", "facts": [["Ann"]]}', '"words" must be a number of at least 1'),
        ('{"words": true, "facts": [["Ann"]]}', '"words" must be a number of at least 1'),
        ('{"words": 9, "facts": []}', '"facts" must be a list of lists of texts, none empty'),
        ('{"words": 9, "facts": ["Ann"]}', '"facts" must be a list of lists of texts, none empty'),
        ('{"words": 9, "facts": [[]]}', '"facts" must be a list of lists of texts, none empty'),
        ('{"words": 9, "facts": [["Ann"], [9]]}', 'a form in "facts" must be a text with a word in it, not 9'),
        ('{"words": 9, "facts": [["Ann"], ["-"]]}', 'a form in "facts" must be a text with a word in it'),
        ('{"words": 3, "facts": [["Ann"], ["Leeds"]]}', '"words" is 3, but a sentence with all facts has at least 4'),
    ],
)
def test_answers_of_another_form_are_refused(answer, message):
    with pytest.raises(ValueError, match="summary: ") as refused:
        check_answer("summary", answer)
    assert message in str(refused.value)
    with pytest.raises(ValueError, match="summary: "):
        score("summary", RIGHT, answer)
