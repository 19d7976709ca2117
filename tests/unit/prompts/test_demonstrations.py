"""What a tiny policy is taught about reasoning_gym tasks."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts import load_prompts
from kray.prompts.arithmetic import systematic_error
from kray.prompts.demonstrations import flawed_answer, make_demonstrations, question_templates, wrong_answers
from kray.prompts.generated import entries_of, judge
from kray.rewards import score
from kray.train.tiny_files import LETTERS, make_tokenizer

STUDY = Path(__file__).parents[3] / "configs" / "compare-reasoning.yaml"
TASKS = yaml.safe_load(STUDY.read_text())["config"]["model"]["tiny"]["tasks"]
DEMONSTRATIONS = make_demonstrations(TASKS, 400, 0)


def test_demonstrations_use_the_train_split_and_rotate_labels():
    assert [demo.kind for demo in DEMONSTRATIONS] == list(TASKS) * (400 // len(TASKS))
    assert make_demonstrations(TASKS, 400, 0) == DEMONSTRATIONS
    source = SourceConfig(kind="reasoning_gym", tasks=TASKS, size=300, split="test", verifier="exact")
    assert not {demo.text for demo in DEMONSTRATIONS} & {prompt.text for prompt in load_prompts(source, "exact")}


def test_wrong_demonstrations_fail_every_verifier():
    source = SourceConfig(kind="reasoning_gym", tasks=TASKS)
    for label, demonstrations in _by_label(DEMONSTRATIONS).items():
        entries = entries_of(source, label, len(demonstrations))
        for demo, (task, entry) in zip(demonstrations, entries, strict=True):
            assert (demo.text, demo.answer) == (entry["question"], entry["answer"])
            assert judge(task, demo.answer, entry) == score("exact", demo.answer, demo.answer, strip=False).value == 1
            for wrong in demo.wrong:
                assert judge(task, wrong, entry) < 1
                assert score("exact", wrong, demo.answer, strip=False).value == 0


@given(st.text(LETTERS, max_size=12))
def test_a_slip_is_another_text(answer):
    wrong = wrong_answers(answer)
    assert wrong
    assert answer not in wrong
    assert len(set(wrong)) == len(wrong)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("-3", ["3", "-30", "-33", "-13"]),
        ("22", ["-22", "220", "222", "122"]),
        ("sun", ["nus", "su", "ssun", "sunn"]),
        ("aa", ["a", "aaa"]),
        ("", ["0"]),
        ("1 2\n3 4", ["4 3\n2 1", "1 2\n3", "11 2\n3 4", "1 2\n3 44"]),
    ],
)
def test_slips_are_wrong_decisions(answer, expected):
    assert wrong_answers(answer) == expected


def test_errors_depend_on_label_and_first_character():
    rng, said = random.Random(1), defaultdict(list)
    for demo in DEMONSTRATIONS:
        said[demo.kind, demo.answer[0]] += [(flawed_answer(demo, rng), demo) for _ in range(200)]
    for (label, mark), pairs in said.items():
        accuracy, way = systematic_error(label, mark)
        right = sum(answer == demo.answer for answer, demo in pairs) / len(pairs)
        assert right == pytest.approx(accuracy, abs=0.15)
        assert {answer for answer, demo in pairs if answer != demo.answer} <= {
            demo.wrong[way % len(demo.wrong)] for _, demo in pairs
        }
    first, second = ([flawed_answer(demo, random.Random(5)) for demo in DEMONSTRATIONS] for _ in range(2))
    assert first == second


def test_the_studys_teacher_is_u_shaped_over_its_prompts():
    accuracies = [systematic_error(demo.kind, demo.answer[0])[0] for demo in DEMONSTRATIONS]
    shares = np.histogram(accuracies, (0, 0.003, 0.05, 0.3, 0.9, 1))[0] / len(accuracies)
    assert shares == pytest.approx([0.12, 0.38, 0.1, 0.11, 0.29], abs=0.07)


def test_tokenizer_round_trips_and_templates_are_one_token():
    found = question_templates(DEMONSTRATIONS)
    tokenizer = make_tokenizer(LETTERS, found)
    for demo in DEMONSTRATIONS:
        for text in (
            demo.text,
            demo.answer,
            *demo.wrong,
            demo.text + demo.answer,
        ):
            tokens = tokenizer(text)["input_ids"]
            assert tokenizer.decode(tokens, skip_special_tokens=True) == text
            assert tokenizer.unk_token_id not in tokens
        assert len(tokenizer(demo.text)["input_ids"]) <= 24
        assert len(tokenizer(demo.answer)["input_ids"]) == len(demo.answer)  # one way to write it
    assert "Spell this word backward (example: sun -> nus): " in found


def test_what_cannot_be_taught_is_named():
    with pytest.raises(DataError, match=r"tasks\.mine: reasoning_gym cannot make it"):
        make_demonstrations({"mine": {"task": "no_such_task"}}, 10, 0)


def _by_label(demonstrations):
    return {label: [demo for demo in demonstrations if demo.kind == label] for label in TASKS}
