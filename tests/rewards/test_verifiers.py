"""What a response is worth."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


MATH = [
    # (right answer, response, value)
    ("72", "#### 72", 1),
    ("x = <<1+2=3>> ...\n#### 1,000", "The answer is $1000.", 1),
    ("... #### 72", "so \\boxed{72}", 1),
    ("72", "#### $72.00", 1),
    ("72", "#### 72 clips\nnext question", 1),
    ("72", "#### The answer is 72.", 1),
    ("72", "\\boxed{72 \\text{ clips}}", 1),
    ("72", "\\boxed{\\$72}", 1),
    ("72", "**72**", 1),
    ("72", "\\boxed{71}, or rather \\boxed{72}", 1),
    ("72", "\\boxed{72}, or rather \\boxed{71}", 0),
    ("72", "", 0),
    ("72", "####", 0),
    ("72", "\\boxed{}", 0),
    ("72", "\\boxed{72", 0),
    ("72", "I do not know", 0),
    ("$18", "#### 18", 1),
    ("\\$18", "18", 1),
    ("50%", "\\boxed{50\\%}", 1),
    ("50%", "0.5", 1),
    ("50\\%", "50%", 1),
    ("\\frac12", "\\boxed{0.5}", 1),
    ("1/2", "\\frac{1}{2}", 1),
    ("\\frac{1}{2}", "the answer is 1/2", 1),
    ("\\frac{1}{2}", "#### \\frac{1}{2}", 1),
    ("2\\frac{1}{2}", "\\boxed{2.5}", 1),
    ("0.333333", "1/3", 1),
    ("0.3333", "1/3", 0),
    ("3.50", "It costs $3.5", 1),
    ("x^2+1", "\\boxed{1+x^2}", 1),
    ("\\boxed{\\sqrt{2}}", "$\\sqrt2$", 1),
    ("(1,2)", "(1,2)", 1),
    ("(1,2)", "\\boxed{(2,1)}", 0),
    ("2", "\\boxed{x=2}", 1),
    ("-5", "answer: -5", 1),
    ("5", "answer: -5", 0),
    ("4", "First 3, then 4", 1),
    ("3", "First 3, then 4", 0),
    ("1000000", "#### 1,000,000", 1),
    ("10", "1,0", 0),
    ("2,125", "#### 2,1251", 0),
    ("2", "\\boxed{1,2}", 0),
    ("1,2", "\\boxed{1,2}", 1),
    ("No solution", "\\boxed{No solution}", 1),
]


@pytest.mark.parametrize(("answer", "response", "value"), MATH)
def test_math(answer, response, value):
    reward = score("math", response, answer)
    assert reward.value == value
    assert (reward.detail == "") == (value == 1)


def test_math_works_off_the_main_thread():
    rewards = []
    thread = threading.Thread(target=lambda: rewards.append(score("math", "\\boxed{x+1}", "1+x")))
    thread.start()
    thread.join(30)
    assert rewards == [Reward(1.0)]


def test_math_without_a_right_answer_is_an_error_not_a_wrong_response():
    with pytest.raises(ValueError, match="no right answer"):
        score("math", "72", "####")


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_math_integers_are_equal_exactly_when_they_are(given_number, right):
    for form in (f"#### {given_number}", f"\\boxed{{{given_number:,}}}", f"It is {given_number}."):
        assert score("math", form, f"work\n#### {right:,}").value == float(given_number == right)
        assert score("math", form, str(given_number)).value == 1.0


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_math_judges_any_text(response):
    assert score("math", response, "72").value in (0.0, 1.0)


def test_reasoning_gym_scores_the_tagged_answer_or_the_whole_text():
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
def test_an_unknown_verifier_is_named_with_the_nearest_and_all_known(call):
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


def test_importing_the_room_loads_nothing_heavy():
    heavy = ("ray", "torch", "transformers", "sympy", "reasoning_gym", "datasets", "pyarrow")
    program = f"import sys, kray.rewards, kray.prompts; print([m for m in {heavy} if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert done.stdout.strip() == "[]"
