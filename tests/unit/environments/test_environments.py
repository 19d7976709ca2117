"""Environments by name, the two that kray ships, and the worker processes that run them."""

from __future__ import annotations

import asyncio
import importlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.config import load_config
from kray.config.schema import EnvironmentConfig
from kray.environments import ENVIRONMENTS, check_environment, stops_of
from kray.environments.calculator import Calculator, calculate
from kray.environments.tools import Tools
from kray.environments.workers import EnvironmentWorkers
from kray.errors import ConfigError
from kray.launch.preflight import load_checked_prompts
from kray.prompts.arithmetic import KINDS, make_problems
from kray.records import Prompt

HERE = "sample_environments"


def prompt(text: str = "1+1=") -> Prompt:
    return Prompt("p", "2", "exact", "test", text=text)


# -- by name ----------------------------------------------------------------------------------------------------------


def test_every_shipped_environment_loads():
    for name in ENVIRONMENTS:
        assert isinstance(stops_of(name), tuple)
    check_environment("calculator", {"least_first": True})
    check_environment("tools", {"tools": ["kray.environments.calculator:calculate"]})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("calculater", {}, 'did you mean "calculator"'),
        ("nowhere_at_all:E", {}, "importing nowhere_at_all failed"),
        (f"{HERE}:Nothing", {}, "has no Nothing"),
        (f"{HERE}:os", {}, "is no class"),
        ("kray.records:Prompt", {}, "has no method reset, step, reward"),
        ("calculator", {"leastfirst": True}, "leastfirst"),
        ("calculator", {"shown": "result"}, "shown must contain"),
        ("tools", {"tools": ["kray.environments.calculator:nothing"]}, "has no nothing"),
        (f"{HERE}:WronglyRanged", {}, r'WronglyRanged": its reward_range must be two numbers of which the second'),
    ],
)
def test_invalid_environments_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        check_environment(name, options)


@pytest.mark.parametrize(
    ("name", "module", "options", "command"),
    [
        (
            "textarena",
            "kray.environments.textarena_game",
            {"game": "TicTacToe-v0"},
            'pip install "textarena>=0.7,<0.8"',
        ),
        ("skyrl_gym", "kray.environments.skyrl", {"env": "gsm8k"}, 'pip install "skyrl-gym>=0.4,<0.5"'),
        (
            "gem",
            "kray.environments.gem",
            {"env": "game:x"},
            "pip install --no-deps --ignore-requires-python gem-llm==0.1.0",
        ),
    ],
)
def test_missing_package_is_named_with_its_command(monkeypatch, name, module, options, command):
    monkeypatch.setattr(importlib.import_module(module), "library", None)
    with pytest.raises(ValueError, match=rf"^the environment {name} needs the package [a-z-]+: {re.escape(command)}"):
        check_environment(name, options)


def test_invalid_environment_is_a_config_error():
    for override, message in [
        ("environment.name=calculater", r"environment\.name must be one of .*did you mean calculator"),
        ("environment.max_turns=0", r"environment\.max_turns must be at least 1"),
        ("environment.step_timeout_s=0", r"environment\.step_timeout_s must be at least 0\.001"),
        ("environment.name=nowhere_at_all:E", "environment: .*importing nowhere_at_all failed"),
        ("environment.options.x=1", "environment: .*unexpected keyword argument 'x'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_checked_prompts(load_config("configs/calculator.yaml", [override]))


# -- calculator -------------------------------------------------------------------------------------------------------


def test_calculator_solves_arithmetic_prompts():
    calculator = Calculator(least_first=True)
    for problem in make_problems(KINDS, 400, 0, "train"):
        result, done = calculator.step(f"so [{problem.text[:-1]}]")
        assert not done
        assert result.ljust(len(problem.answer), "0") == problem.answer


@given(
    st.recursive(
        st.integers(0, 999).map(str),
        lambda part: st.tuples(part, st.sampled_from("+-*/%"), part).map("({0[0]}{0[1]}{0[2]})".format),
        max_leaves=6,
    )
)
def test_results_equal_pythons(expression):
    try:
        right = eval(expression)
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="ZeroDivisionError"):
            calculate(expression)
        return
    assert float(calculate(expression)) == pytest.approx(right, rel=1e-9)


@pytest.mark.parametrize(
    "text", ["", "1+", "__import__('os')", "9**9**9", "1" * 61, "a", "(" * 190, "1,2", "'a'*9", "True", "1e400"]
)
def test_invalid_expressions_are_not_evaluated(text):
    with pytest.raises(ValueError):  # noqa: PT011
        calculate(text)
    assert Calculator(unclear="?").step(f"[{text}]") == ("?", False)


def test_calculator_ends_without_a_call():
    assert Calculator().step("12")[1]
    assert Calculator().step("[1+2] is 3")[1]
    assert Calculator(shown="= {}\n").step("[007 + 5]") == ("= 12\n", False)
    assert Calculator(least_first=True).step("[100-02]") == ("91-", False)  # 1 - 20


# -- tools ------------------------------------------------------------------------------------------------------------


def test_tools_reply_to_each_call():
    tools = Tools(["kray.environments.calculator:calculate"])

    def call(text):
        return f"<tool_call>\n{text}\n</tool_call>"

    good = '{"name": "calculate", "arguments": {"expression": "3*(4+5)"}}'
    answers, done = tools.step(f"Let me see. {call(good)} and {call(good)}")
    assert not done
    assert answers == [{"role": "tool", "content": "27"}] * 2
    for text, message in [
        ("{", "JSONDecodeError"),
        ('{"name": "rm", "arguments": {}}', "no tool 'rm'"),
        ('{"name": "calculate", "arguments": {"x": 1}}', "TypeError"),
        ("[]", "TypeError"),
        (good.replace("3*", "3/0*"), "ZeroDivisionError"),
    ]:
        ((answer,), done) = tools.step(call(text))
        assert not done
        assert answer["content"].startswith("error: ")
        assert message in answer["content"]
    assert tools.step("27") == ([], True)


# -- worker processes --------------------------------------------------------------------------------------------------


def run_workers(name: str, work, **settings):
    async def go():
        workers = EnvironmentWorkers(EnvironmentConfig(name=f"{HERE}:{name}", **settings))
        try:
            return await asyncio.wait_for(work(workers), 60)
        finally:
            workers.close()

    return asyncio.run(go())


@pytest.fixture(autouse=True)
def _findable(monkeypatch):
    """Let the workers import the modules of tests/."""
    from pathlib import Path

    import sample_environments

    monkeypatch.syspath_prepend(str(Path(sample_environments.__file__).parent))


def test_environments_move_between_processes():
    async def work(workers):
        (start,) = await workers.begin([(prompt(), 7)])
        observed, states = [], [start.state, start.state]  # two rollouts begin as copies
        for action in ("a", "b", "c"):
            turns = await workers.step([(state, action + str(i), False) for i, state in enumerate(states)])
            observed.append([turn.observation for turn in turns])
            states = [turn.state for turn in turns]
        return observed, turns, await workers.step([(start.state, "x", True)]), await workers.finish([start.state])

    observed, turns, cut, finished = run_workers("Echo", work, options={"times": 2}, workers=2)
    assert observed == [["<a0>", "<a1>"], ["<b0>", "<b1>"], ["", ""]]
    assert [(turn.ended, turn.reward) for turn in turns] == [(True, 1.0)] * 2
    assert (cut[0].ended, cut[0].reward) == (True, pytest.approx(1 / 3))
    assert (finished[0].ended, finished[0].reward) == (True, 0.0)


def test_broken_environment_fails_its_own_rollout_only():
    async def work(workers):
        bad, good = await workers.begin([(prompt("broken"), 0), (prompt(), 0)])
        state = good.state
        broken = ["raise", "hang", "die", "unpicklable", "worth2", "half", "number"]
        moves = [(state, action, False) for each in broken for action in (each, "fine")]
        started = time.monotonic()
        turns = await workers.step(moves)
        return bad, dict(zip(broken, turns[::2], strict=True)), turns[1::2], time.monotonic() - started

    bad, broken, fine, seconds = run_workers("Broken", work, step_timeout_s=1.0)
    assert bad.startswith("environment: RuntimeError: it does not start")
    assert all(turn.observation == "go on" for turn in fine)
    assert broken.pop("half").observation == "\ufffd"
    for action, why in {
        "raise": "RuntimeError: it broke",
        "hang": "timeout after 1 s",
        "die": "died twice",
        "unpicklable": "pickle",
        "worth2": "the reward is 2, not in",
        "number": "not iterable",
    }.items():
        assert broken[action].startswith("environment: "), action
        assert why in broken[action], action
    assert seconds < 30


def test_an_environment_declares_the_range_of_its_rewards():
    async def work(workers):
        (opened,) = await workers.begin([(prompt(), 0)])
        return await workers.step([(opened.state, action, False) for action in ("-2", "1", "2", "3")])

    *turns, beyond = run_workers("Ranged", work)
    assert [turn.reward for turn in turns] == [0.0, 0.75, 1.0]
    assert "Ranged: the reward is 3, not in [-2, 2], its reward_range" in beyond
