"""Reward functions of other trainers are called as they are."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from kray.records import Prompt
from kray.rewards import Sample, Scorer, check_prompt, check_verifier, score
from kray.rewards.signatures import KRAY, TRL, VERIFIERS_STYLE, VERL, signature_of
from kray.rewards.verifiers import load_verifier

CHAT = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "6 * 7?"})


def sample(answer: str = "42", chat: bool = False, tokens=(5, 6, 7), **columns) -> Sample:
    asked = {"messages": CHAT} if chat else {"text": "6 * 7?"}
    return Sample(Prompt("p:1", answer, "", "p", columns=columns, **asked), tokens)


def earned(function: str, response: str, subject: Sample | str, **options) -> float:
    return score(f"sample_rewards:{function}", response, subject, **options).value


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_functions_of_trl_get_columns_and_completions_of_the_prompts_kind(chat):
    assert earned("trl_even", "42", sample(chat=chat)) == 1.0
    assert earned("trl_solution", "42 ", sample(chat=chat, solution="42")) == 1.0
    assert earned("trl_solution", "41", sample(chat=chat, solution="42")) == 0.0
    assert earned("trl_level", "x", sample(chat=chat, level="hard", other=[1])) == 1.0
    assert earned("trl_length", "x", sample(chat=chat, tokens=np.array([5, 6], dtype=np.int32))) == 2.0
    assert earned("trl_async", "x", sample(chat=chat)) == 0.25


def test_functions_of_trl_get_all_they_may_ask_for(tmp_path):
    file = tmp_path / "rewards.py"
    file.write_text(
        "def seen(completions, **columns):\n"
        "    global last\n"
        "    last = {'completions': completions, **columns}\n"
        "    return [1.0]\n"
    )
    subject = sample(chat=True, solution={"x": [1, 2]})
    assert score(f"{file}:seen", "six", subject, bonus=0.1).value == 1.0
    seen = load_verifier(f"{file}:seen").__globals__["last"]
    assert seen == {
        "prompts": [[dict(message) for message in CHAT]],
        "completions": [[{"role": "assistant", "content": "six"}]],
        "completion_ids": [[5, 6, 7]],
        "answer": ["42"],
        "solution": [{"x": [1, 2]}],
        "bonus": 0.1,
    }


def test_functions_of_verl_get_their_four_arguments_and_may_return_a_mapping():
    subject = sample(data_source="openai/gsm8k", extra_info={"split": "train", "index": 3})
    found = score("sample_rewards:compute_score", "it is 42", subject)
    assert (found.value, found.detail) == (1.0, '{"split": "train", "said": ["42"]}')
    assert earned("compute_score", "it is 41", subject) == 0.5
    # Columns of the name of the answer come as they are.
    assert earned("compute_score", "it is 41", sample(data_source="tiny/sums", ground_truth=41)) == 1.0
    assert (
        earned("target_score", "40+2", sample("", data_source="", ground_truth={"target": 42, "numbers": [40, 2]}))
        == 1.0
    )
    assert earned("compute_score_plain", "42", sample()) == 1.0
    assert earned("compute_score_plain", "42", sample(), method="flexible") == 0.5


def test_rubrics_of_verifiers_get_messages():
    assert earned("rubric", "42", sample(info={"below": 50})) == 1.0
    assert earned("rubric", "42", sample(chat=True, info={"below": 40})) == 0.0


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("sample_rewards:trl_even", TRL),
        ("sample_rewards:compute_score", VERL),
        ("sample_rewards:compute_score_plain", VERL),
        ("sample_rewards:rubric", VERIFIERS_STYLE),
        ("sample_verifiers:first_is_even", KRAY),
        ("exact", KRAY),
        ("math", KRAY),
    ],
)
def test_the_signature_is_told_by_its_parameters(name, style):
    assert signature_of(load_verifier(name)).style == style


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none_of_them", r'"sample_rewards:none_of_them" takes \(text\), which is not a signature .*TRL.*verl'),
        ("two_at_once", r"takes \(completions, solution_str\), which mixes the signatures of TRL and verl"),
    ],
)
def test_an_unknown_signature_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        check_verifier(f"sample_rewards:{name}")


@pytest.mark.parametrize(
    ("function", "subject", "message"),
    [
        ("trl_level", sample(), r"asks for level, and the prompt has no columns; name fields in the source's columns"),
        ("compute_score", sample(extra_info={}), r"asks for data_source, and the prompt's columns are extra_info"),
        ("trl_level", sample(level="easy"), "it does not apply to this prompt"),
        ("trl_two", sample(), "returned 2 rewards for a list of 1 completion"),
        ("trl_number", sample(), r"returned 1\.0, not a list with one reward"),
        ("compute_score_without", sample(data_source=""), r'without "score" \(keys: acc\)'),
    ],
)
def test_what_cannot_be_scored_says_why(function, subject, message):
    with pytest.raises(ValueError, match=message):
        earned(function, "42", subject)


def test_columns_and_options_are_checked_before_a_run():
    check_verifier("sample_rewards:compute_score_plain", method="strict")
    with pytest.raises(ValueError, match="has no option metod"):
        check_verifier("sample_rewards:compute_score_plain", metod="strict")
    check_prompt("sample_rewards:trl_level", sample(level=None).prompt, {})
    check_prompt("sample_rewards:trl_level", sample().prompt, {"level": ["hard"]})
    with pytest.raises(ValueError, match="asks for level"):
        check_prompt("sample_rewards:trl_level", sample().prompt, {})
    check_prompt("exact", sample().prompt, {})


def test_files_are_found_by_absolute_and_relative_paths(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "reward_functions.py"
    file.write_text("def f(completions, **kwargs):\n    return [0.5]\n")
    assert score(f"{file}:f", "x", sample()).value == 0.5
    monkeypatch.chdir(tmp_path)
    assert score("mine/reward_functions.py:f", "x", sample()).value == 0.5
    with pytest.raises(ValueError, match=r"importing nowhere\.py failed: FileNotFoundError: there is no such file"):
        check_verifier("nowhere.py:f")
    with pytest.raises(ValueError, match=r'has no function "g"'):
        check_verifier(f"{file}:g")
    file.with_name("broken.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        check_verifier("mine/broken.py:f")


def test_scoring_processes_call_them_and_survive_them():
    items = [
        ("", "42", sample(solution="42")),
        ("sample_rewards:compute_score", "41", sample(data_source="tiny/sums", extra_info={"split": None})),
        ("sample_rewards:trl_hangs", "42", sample()),
        ("sample_rewards:trl_level", "42", sample(level="easy")),
        ("sample_rewards:trl_level", "42", sample()),
        ("exact", "42", sample()),
        ("named", "42", sample()),
    ]
    named = {"named": ("sample_rewards:compute_score_plain", {"method": "flexible"})}

    async def run():
        with Scorer("sample_rewards:trl_solution", timeout_s=1.0, named=named) as scorer:
            return await scorer.score(items)

    right, verl, late, skipped, missing, exact, option = asyncio.run(run())
    assert [right.reward, verl.reward, exact.reward, option.reward] == [1.0, 0.5, 1.0, 0.5]
    assert verl.detail == '{"split": null, "said": ["41"]}'
    assert (late.reward, late.timed_out) == (0.0, True)
    assert (skipped.reward, skipped.skipped) == (None, True)
    assert (missing.reward, missing.skipped) == (None, False)
    assert "asks for level" in missing.error
