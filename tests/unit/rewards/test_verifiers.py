"""What a response is worth."""

import json

import numpy as np
import pytest

from kray.rewards import Reward, check_verifier, score
from kray.rewards.verifiers import as_reward


@pytest.mark.parametrize(
    ("response", "answer", "options", "value"),
    [
        (" 42\n", "42", {}, 1.0),
        ("42.", "42", {}, 0.0),
        ("Paris", "paris", {}, 0.0),
        ("Paris", "paris", {"case_sensitive": False}, 1.0),
        ("", "42", {}, 0.0),
    ],
)
def test_exact(response, answer, options, value):
    assert score("exact", response, answer, **options).value == value


def test_reasoning_gym_scores_tagged_answer_or_whole_text():
    import reasoning_gym

    entry = reasoning_gym.create_dataset("chain_sum", seed=1, size=1)[0]
    answer = json.dumps({"task": "chain_sum", "entry": entry})
    right = entry["answer"]
    assert score("reasoning_gym", f"<answer>7</answer> no: <answer> {right}\n</answer> end", answer).value == 1.0
    assert score("reasoning_gym", f" {right}\n", answer).value == 1.0
    nearly = f"it is {right}, I think"
    assert 0 < score("reasoning_gym", nearly, answer).value < 1
    assert score("reasoning_gym", nearly, answer, partial=False).value == 0
    assert score("reasoning_gym", "<answer></answer>", answer).value == 0


@pytest.mark.parametrize("answer", ["72", "", "[]", '{"task": "chain_sum"}'])
def test_reasoning_gym_without_an_entry_is_an_error(answer):
    with pytest.raises(ValueError, match='"task" and "entry"'):
        score("reasoning_gym", "72", answer)


def test_a_verifier_of_ones_own(monkeypatch, tmp_path):
    (tmp_path / "my_rules.py").write_text("def short(response, answer, *, most=3):\n    return len(response) <= most\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert score("my_rules:short", "abc", "") == Reward(1.0)
    assert score("my_rules:short", "abc", "", most=2) == Reward(0.0)
    check_verifier("my_rules:short", most=2)
    with pytest.raises(ValueError, match="least"):
        check_verifier("my_rules:short", least=2)
    with pytest.raises(ValueError, match='no function "long"'):
        check_verifier("my_rules:long")
    with pytest.raises(ValueError, match="importing no_such_rules failed"):
        check_verifier("no_such_rules:short")


@pytest.mark.parametrize("call", [lambda: score("mth", "1", "1"), lambda: check_verifier("mth")])
def test_unknown_verifier_error_suggests_known_ones(call):
    with pytest.raises(
        ValueError, match=r'verifier "mth" is not known \(did you mean "math"\?\); known: exact, math, code, reas'
    ):
        call()


@pytest.mark.parametrize("name", ["exact", "math", "code", "reasoning_gym"])
def test_known_verifiers_can_be_loaded(name):
    check_verifier(name)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), 10**400, 1j, None, "1", np.nan, np.array([1.0, 2.0])]
)
def test_a_reward_that_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match=r'verifier "v" returned .* not a'):
        as_reward(value, "v")


@pytest.mark.parametrize("value", [1, True, np.float32(1), np.bool_(True), np.array([1.0]), Reward(1)])
def test_any_finite_number_is_a_reward(value):
    reward = as_reward(value, "v")
    assert reward.value == 1.0
    assert type(reward.value) is float
