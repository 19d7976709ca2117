"""A solver and a checker on arithmetic: what each reads and what each is rewarded for."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.config import check, load_config
from kray.environments import check_environment, role_turns, roles_of
from kray.environments.role_turns import Move, RoleTurn
from kray.environments.solver_checker import SolverChecker, with_error
from kray.prompts.arithmetic import make_problems
from kray.records import Prompt

PROMPT = Prompt("p", "640", "exact", "arithmetic", text="21+43=")
ANSWERS = st.text("0123456789", min_size=1, max_size=6)


def play(answer, verdict, altered=0.0, seed=0):
    """Return (rewards, what the checker reads)."""
    environment = SolverChecker(altered)
    assert environment.reset(PROMPT, seed) == ("solver", {})
    role, seen, done = environment.step("solver", answer)
    assert (role, done) == ("checker", False)
    assert environment.step("checker", verdict)[2]
    return {name: reward.value for name, reward in environment.rewards().items()}, seen["checker"]


@pytest.mark.parametrize(
    ("answer", "shown", "solved", "right"),
    [
        ("640", "640?", 1, "y"),
        (" 640", "640?", 1, "y"),
        ("641", "641?", 0, "n"),
        # no mark of the solver's own reaches the checker
        ("640!", "?", 0, "n"),
        ("0640", "?", 0, "n"),
        ("64", "?", 0, "n"),
        ("٦٤٠", "?", 0, "n"),
        ("", "?", 0, "n"),
    ],
)
def test_each_role_is_rewarded_for_its_own_part(answer, shown, solved, right):
    for verdict in ("y", "n", " y ", "", "yes", "640"):
        rewards, seen = play(answer, verdict)
        assert seen == shown
        assert rewards == {"solver": solved, "checker": verdict.strip() == right}


def test_constant_verdicts_are_worth_half_against_a_solver_that_is_always_right():
    shown = [play("640", "y", 0.5, seed) for seed in range(400)]
    assert 0.42 < sum(rewards["checker"] for rewards, _ in shown) / 400 < 0.58
    for rewards, seen in shown:
        assert rewards["solver"] == 1
        assert (seen == "640?") == (rewards["checker"] == 1)
        assert len(seen) == 4
    assert play("640", "y", 1.0)[0]["checker"] == play("640", "n", 0.0)[0]["checker"] == 0
    # wrong answers are read as they are
    assert all(play("641", "n", 1.0, seed) == ({"solver": 0, "checker": 1}, "641?") for seed in range(20))


@given(ANSWERS, st.integers(0, 10**6))
def test_error_changes_one_digit(answer, seed):
    other = with_error(answer, random.Random(seed))
    assert sum(a != b for a, b in zip(answer, other, strict=True)) == 1
    assert other.isdigit()


@pytest.mark.parametrize("policy", ["solver", "checker"])
def test_perfect_player_takes_the_other_role(policy):
    """Through the functions of the environment's processes, with real problems."""
    scripted = {role: "perfect" for role in SolverChecker.roles if role != policy}
    for number, problem in enumerate(make_problems(["add1", "sub2", "add3"], 60, 0, "test")):
        prompt = Prompt(problem.text, problem.answer, "exact", "arithmetic", text=problem.text)
        turn = role_turns.begin("", ("solver_checker", {}, prompt, number))
        assert turn.role == "solver"
        if policy == "checker":
            turn = role_turns.step("", Move(turn.state, "", "", scripted, number))
            ((reader, seen),) = turn.observed
            assert (turn.role, reader) == ("checker", "checker")
            action = "y" if seen == f"{problem.answer}?" else "n"
        else:
            action = problem.answer
        ended = role_turns.step("", Move(turn.state, policy, action, scripted, number))
        assert ended.ended
        assert {role: value for role, (value, _) in ended.rewards.items()} == {"solver": 1.0, "checker": 1.0}
        assert RoleTurn.read(json.loads(json.dumps(ended.plain()))) == ended


def test_episode_that_ends_before_the_verdict_rewards_no_checker():
    environment = SolverChecker()
    environment.reset(PROMPT, 0)
    environment.step("solver", "640")
    assert {name: reward.value for name, reward in environment.rewards().items()} == {"solver": 1, "checker": 0}


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match="needs answers of digits 0 to 9, not '-3'"):
        SolverChecker().reset(Prompt("p", "-3", "exact", "x", text="1-4="), 0)
    with pytest.raises(ValueError, match=r"altered must be in \[0, 1\], not 2"):
        check_environment("solver_checker", {"altered": 2})


def test_configuration_is_sound():
    config = load_config("configs/solver-checker.yaml", [])
    assert check(config) == []
    assert roles_of(config.environment.name, config.environment.options) == ("solver", "checker")
