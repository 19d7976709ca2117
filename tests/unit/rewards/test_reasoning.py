"""Scoring of reasoning_gym's tasks runs nothing that a policy wrote."""

from __future__ import annotations

import contextlib
import json
import os

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from kray.config import KrayConfig
from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.launch.preflight import check_prompts
from kray.prompts import load_prompts
from kray.prompts.generated import _pack as pack_entry
from kray.rewards import check_answer
from kray.rewards.reasoning import parse_arithmetic, verify_reasoning

MARK = "KRAY_EVALUATED"
CALL = f"__import__('os').environ.__setitem__('{MARK}', 'x')"
HOSTILE = (
    CALL,
    f"[{CALL}]",
    f"[[{CALL}]]",
    f"[c for c in oracle_answer] or {CALL}",
    f"2 + int({CALL} or 1)",
    f"(lambda: {CALL})()",
    f'{{"a": {CALL}}}',
    f"sin({CALL})",
    f"Symbol('x').__class__.__init__.__globals__ and {CALL}",
)


@pytest.fixture(scope="module")
def entries():
    """One problem of each task that can be made without options: (task, packed answer, right answer)."""
    found = []
    for task in sorted(DATASETS):
        try:
            entry = reasoning_gym.create_dataset(task, size=1, seed=3)[0]
        except (ValueError, TypeError, AssertionError, OSError, NotImplementedError):
            continue  # composite needs tasks to be made of
        found.append((task, pack_entry(task, entry), entry["answer"]))
    assert len(found) > 90
    return found


READERS = (
    *("string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "number_sorting", "countdown", "puzzle24"),
    *("polynomial_multiplication", "simple_integration", "intermediate_integration"),
)


def test_right_answers_are_still_right(entries):
    """Of the tasks that are read by other parsers now."""
    found = {task: (packed, right) for task, packed, right in entries}
    for task in READERS:
        packed, right = found[task]
        assert verify_reasoning(right, packed).value == 1.0, task


def test_lists_are_still_read(entries):
    found = {task: (packed, right) for task, packed, right in entries}
    for task, share in (("string_insertion", 0.1), ("spiral_matrix", 0.1), ("binary_matrix", 0.1), ("n_queens", 0.5)):
        packed, right = found[task]
        listed = [row.split() for row in right.splitlines()] if task in ("binary_matrix", "n_queens") else (
            list(right) if task == "string_insertion" else right.split())  # fmt: skip
        assert verify_reasoning(repr(listed), packed).value == share, task


def test_no_task_evaluates_an_answer(entries):
    for task, packed, _ in entries:
        for answer in HOSTILE:
            with contextlib.suppress(Exception):  # some tasks' scoring raises on what it cannot read: a data failure
                verify_reasoning(f"<answer>{answer}</answer>", packed)
            assert MARK not in os.environ, (task, answer)


def test_the_names_of_a_scorers_variables_earn_nothing(entries):
    packed = {task: answer for task, answer, _ in entries}
    for task in ("string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "number_sorting"):
        for name in (
            "oracle_answer",
            "[oracle_answer]",
            "entry['answer']",
            "list(oracle_answer)",
            "valid_solutions[0]",
        ):
            assert verify_reasoning(name, packed[task]).value == 0, (task, name)


@pytest.mark.parametrize(
    ("task", "metadata", "answer", "value"),
    [
        ("countdown", {"numbers": [3, 4, 5], "target": 35}, "(3 + 4) * 5", 1.0),
        ("countdown", {"numbers": [3, 4, 5], "target": 35}, "5 * (3 + 4", 0.01),
        ("countdown", {"numbers": [3, 4, 5], "target": 36}, "(3 + 4) * 5", 0.05),
        ("countdown", {"numbers": [3, 4, 5], "target": 36}, "(3 + 4) * 5 + x / x", 0.01),
        ("countdown", {"numbers": [3, 4, 5], "target": 3}, "3 + cos(4 - 4) * 0 * 5", 0.01),
        ("countdown", {"numbers": [3, 4, 5], "target": 14}, "3.5 * 4", 0.01),
        ("countdown", {"numbers": [2, 5, 7], "target": 15}, "7 // 2 * 5", 0.01),
        ("countdown", {"numbers": [2, 5, 7], "target": 56}, "7 ** 2 + 5 + 2", 0.01),
        ("simple_integration", {"variable": "x", "integrand": "2*x + cos(x)"}, "x**2 + sin(x) + C", 1.0),
        ("simple_integration", {"variable": "x", "integrand": "2*x"}, "x**3", 0.0),
        ("string_insertion", {}, "['A', 'B']", 0.1),
        ("string_insertion", {}, "AB", 1.0),
    ],
)
def test_what_tasks_read_they_still_read(task, metadata, answer, value):
    packed = json.dumps({"task": task, "entry": {"answer": "AB", "metadata": metadata}})
    assert verify_reasoning(answer, packed).value == value


@pytest.mark.parametrize(
    "text",
    ["open", "open('x')", "x.y", "f(x)", "'a'", "1 if x else 2", "x[0]", "24 # 3", "_x", "sin(x, evaluate=0)", ""],
)
def test_what_is_not_arithmetic_is_not_evaluated(text):
    with pytest.raises(ValueError, match="not a"):
        parse_arithmetic(text)


STRANGE = (
    "", "0", "0.0", "00", "-0", "1", "nan", "nan+nani", "inf", "1e999", "1e-400", "None", "[]", "{}", "[[]]", "yes no",
    "True False", "?", "\0", "x", "0 0", "0/1", "1/0", "(1, 2)", "*", "()", "'",
)  # fmt: skip


def test_no_task_gives_strange_texts_full_marks(entries):
    """Unless one is right: 0 may be the answer, or "no"."""
    found = {}
    for task, packed, right in entries:
        for text in STRANGE:
            if verify_reasoning(text, packed).value >= 1 and not same(text, right):
                found.setdefault(task, []).append(text)
    assert found == {}


def same(text: str, right: str) -> bool:
    with contextlib.suppress(ValueError):
        return float(text.replace(",", "")) == float(right)
    return text.casefold() == str(right).casefold()


@pytest.mark.parametrize(
    ("task", "entry", "right", "wrong"),
    [
        ("coin_flip", {"answer": "0.375"}, ["0.375", "3/8", ".37501"], ["0", "0.3", "0.37", "3", "0.3750000000001e1", "nan"]),
        ("coin_flip", {"answer": "0.00001"}, ["0.00001"], ["0", "0.0"]),
        ("complex_arithmetic", {"answer": "3 - 2i", "metadata": {"result": [3.0, -2.0]}}, ["3 - 2i", "3.0 - 2.0i"],
         ["nan", "NaN", "nan+nani", "inf", "3 + 2i"]),
        ("game_of_life_halting", {"answer": "True"}, ["True", " true\n"], ["False", "0", "x", "True or False"]),
        ("game_of_life_halting", {"answer": "False"}, ["False"], ["True", "no"]),
        ("puzzle24", {"answer": "2 + 9 + 6 + 7", "metadata": {"numbers": [2, 9, 6, 7]}}, ["2 + 9 + 6 + 7", "7+6+9+2"],
         ["6*4*1*1", "2 + 9 + 6 + 8", "9 * 6 / 2 - 7 + 4", "2*9 + 6 + 7 - 7", "24"]),
        ("puzzle24", {"answer": "48 - 12*2/1", "metadata": {"numbers": [48, 12, 2, 1]}}, ["48 - 12*2/1"],
         ["12*2/1", "0", "(" * 300, "9" * 5000, "48(2)", "48 - 12/0"]),
        ("decimal_arithmetic", {"answer": "1.316140"}, ["1.316140", "1.31614", "1.316141"], ["1.316740", "1.316", "nan"]),
        ("gsm_symbolic", {"answer": "13"}, ["13", "13.0", "13 toys", "$13"], ["-13", "13, 14", "13 or 7", "not 14, 13", "x"]),
        ("puzzle24", {"answer": "8*3*1*1", "metadata": {"numbers": [7, 7, 2, 1]}}, [], ["7*7/2*1", "7*7/(2*1)"]),
    ],
)  # fmt: skip
def test_full_marks_are_for_right_answers_alone(task, entry, right, wrong):
    packed = json.dumps({"task": task, "entry": {"metadata": {}, **entry}})
    assert [verify_reasoning(answer, packed).value for answer in right] == [1.0] * len(right)
    assert all(verify_reasoning(answer, packed).value < 1 for answer in wrong)


def test_every_generated_entry_is_an_answer(entries):
    for _, packed, _ in entries:
        check_answer("reasoning_gym", packed)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("72", 'must be JSON with "task" and "entry"'),
        ("The answer is 72", 'must be JSON with "task" and "entry"'),
        ("[" * 100_000, 'must be JSON with "task" and "entry"'),
        ('{"task": "spell_backward"}', 'must be JSON with "task" and "entry"'),
        ('{"task": "spell_backwards", "entry": {"answer": "a"}}', 'not known (did you mean "spell_backward"?)'),
        ('{"task": ["x"], "entry": {"answer": "a"}}', "is not known"),
        ('{"task": "spell_backward", "entry": "a"}', 'must be an object with "answer"'),
        ('{"task": "spell_backward", "entry": {"question": "q"}}', 'must be an object with "answer"'),
        ('{"task": "n_queens", "entry": {"answer": "x", "metadata": {}}}', "cannot read its entry"),
        ('{"task": "number_sorting", "entry": {"answer": "[1]"}}', "has no metadata, is wrong"),
    ],
)
def test_an_answer_that_nothing_can_be_judged_by_is_refused(answer, why):
    with pytest.raises(ValueError, match="reasoning_gym: ") as found:
        check_answer("reasoning_gym", answer)
    assert why in str(found.value)


def test_rows_without_entries_are_refused_with_their_place(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "2+2?", "answer": "4"}\n')
    config = KrayConfig()
    config.prompts.per_step = 1
    prompts = load_prompts(SourceConfig(kind="jsonl", path=str(tmp_path / "p.jsonl")), "reasoning_gym")
    with pytest.raises(DataError, match=r"p\.jsonl:1: reasoning_gym: the answer must be JSON"):
        check_prompts(config, prompts, [])
