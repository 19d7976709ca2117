"""Generated programs: tests that the reference passes and near misses do not, computed in this process but for a few."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.prompts.programs import PROGRAMS
from kray.rewards import score
from kray.rewards.code import extract

SEEDS, SPLITS = st.integers(0, 10**6), st.sampled_from(["train", "test"])


def passes(program, answer):
    """Whether a program without side effects passes its tests."""
    names = {}
    exec(program, names)
    return all(same(names[call["call"]](*call["args"]), call["value"]) for call in json.loads(answer)["calls"])


def same(value, right):
    return type(value) is type(right) and value == right


@settings(max_examples=30)
@given(seed=SEEDS, split=SPLITS)
def test_references_pass_their_tests(seed, split):
    for task in PROGRAMS.make([], 24, seed, split):
        assert passes(extract(task.reference), task.answer), task


@settings(max_examples=30)
@given(seed=SEEDS, split=SPLITS)
def test_constants_and_the_argument_do_not_pass(seed, split):
    for task in PROGRAMS.make([], 12, seed, split):
        head = extract(task.reference).partition("\n")[0]
        argument = re.search(r"\((\w+)\)", head)[1]
        results = [call["value"] for call in json.loads(task.answer)["calls"]]
        for body in (argument, *map(repr, results)):
            assert not passes(f"{head}\n    return {body}", task.answer), (task, body)


@settings(max_examples=30)
@given(seed=SEEDS, split=SPLITS)
def test_a_number_or_word_that_differs_does_not_pass(seed, split):
    for task in PROGRAMS.make([], 12, seed, split):
        program = extract(task.reference)
        head, _, body = program.partition("return ")
        near = re.sub(r"(?<!\*\* )\b\d+\b", lambda found: str(int(found[0]) + 1), body, count=1)
        near = near if near != body else body.replace('" +', 'x" +')
        assert near != body
        assert not passes(f"{head}return {near}", task.answer), (task, near)


@settings(max_examples=30)
@given(seed=SEEDS)
def test_the_prompt_says_what_the_reference_uses(seed):
    for task in PROGRAMS.make([], 12, seed, "train"):
        head, body = re.match(r"```python\ndef (.*):\n    return (.*)\n```", task.reference).groups()
        assert f"function {head} that returns" in task.text
        for constant in re.findall(r'(?<!\*\* )(?<!== )\b\d+|"\w+"', body):
            assert constant in task.text


@pytest.mark.parametrize("kind", PROGRAMS.templates)
def test_the_sandbox_agrees(kind):
    task = PROGRAMS.make([kind], 1, 0, "test")[0]
    assert score("code", f"Here it is:\n{task.reference}", task.answer).value == 1
    assert score("code", task.reference.replace("return", "x ="), task.answer).value == 0
