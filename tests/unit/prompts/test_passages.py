"""Generated passages: the reference scores 1, and copying from the passage does not."""

import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from kray.prompts.passages import MOST_WORDS, PASSAGES
from kray.rewards.summary import verify_summary

SEEDS, SPLITS = st.integers(0, 10**6), st.sampled_from(["train", "test"])


@settings(max_examples=30)
@given(seed=SEEDS, split=SPLITS)
def test_references_score_1(seed, split):
    for task in PASSAGES.make([], 12, seed, split):
        assert verify_summary(task.reference, task.answer).value == 1, task
        assert f"at most {MOST_WORDS} words" in task.text


@settings(max_examples=30)
@given(seed=SEEDS, split=SPLITS)
def test_the_passage_states_every_fact_in_one_of_its_forms(seed, split):
    for task in PASSAGES.make([], 12, seed, split):
        passage = task.text.partition("\n\n")[0]
        for forms in json.loads(task.answer)["facts"]:
            assert any(re.search(rf"\b{re.escape(form)}\b", passage) for form in forms), (task, forms)


@settings(max_examples=30)
@given(seed=SEEDS, split=SPLITS)
def test_no_part_of_the_passage_scores(seed, split):
    for task in PASSAGES.make([], 6, seed, split):
        passage, _, asked = task.text.partition("\n\n")
        words = passage.rstrip(".").replace(".", ",").split()
        copies = [" ".join(words[i : i + MOST_WORDS]) for i in range(len(words) - MOST_WORDS + 1)]
        for copy in (passage, asked, *re.split(r"(?<=\.) ", passage), *(f"{c[0].upper()}{c[1:]}." for c in copies)):
            assert verify_summary(copy, task.answer).value == 0, (task, copy)


@settings(max_examples=30)
@given(seed=SEEDS)
def test_a_summary_of_another_passage_does_not_score(seed):
    tasks = {task.reference: task for task in PASSAGES.make([], 24, seed, "train")}
    for task in tasks.values():
        right = {other.reference for other in tasks.values() if verify_summary(other.reference, task.answer).value}
        assert right == {task.reference}
