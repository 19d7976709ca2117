"""A step's plan rejects bad calls by name, and a rejected call changes nothing."""

import json

import pytest

from kray.planner import KnapsackPlanner


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("prompt_id", lambda step: step.observe("zz", [1])),
        ("rewards", lambda step: step.observe("a", [1] * 500)),
        ("rewards", lambda step: step.observe("a", [float("nan")])),
        ("rewards", lambda step: step.observe("a", [0.0, 1.5])),
        ("tokens", lambda step: step.observe("a", [0.0], tokens=float("nan"))),
        ("rollouts", lambda step: step.lost("a", -1)),
        ("rollouts", lambda step: step.lost("a", 0.5)),
        ("room", lambda step: step.take(-1)),
    ],
)
def test_bad_calls_are_named_and_change_nothing(match, call):
    planner = KnapsackPlanner("static", 16)
    step = planner.begin(["a", "b"])
    step.take(None)
    before = json.dumps(planner.to_dict())
    with pytest.raises(ValueError, match=f"^{match}"):
        call(step)
    assert json.dumps(planner.to_dict()) == before
    assert step.in_flight == 16


@pytest.mark.parametrize(
    ("match", "settings", "known"),
    [
        (r"plan\.value", {"value": "gold"}, {}),
        (r"plan\.marginal hybrid", {"marginal": "hybrid", "value": "grpo"}, {}),
        (r"plan\.token_budget", {"unit": "tokens"}, {}),
        ("cost", {"unit": "tokens", "token_budget": 100}, {}),
        ("cost", {"unit": "tokens", "token_budget": 100}, {"cost": [1.0, float("nan")]}),
        ("due", {"candidates": 2}, {"due": [True]}),
        ("labels", {}, {"labels": ["x"]}),
        ("prompt_ids", {}, {"prompt_ids": ["a", "a"]}),
        (r"plan\.token_budget=3", {"unit": "tokens", "token_budget": 3}, {"cost": [1.0, 1.0]}),
    ],
)
def test_plans_that_cannot_be_made_are_named(match, settings, known):
    with pytest.raises(ValueError, match=match):
        KnapsackPlanner(**{"budget": 16, **settings}).begin(**{"prompt_ids": ["a", "b"], **known})
    with pytest.raises(ValueError, match="begin"):
        KnapsackPlanner("rounds").plan(["a"], 8)


def test_a_step_that_cannot_be_opened_leaves_no_trace(monkeypatch):
    planner = KnapsackPlanner("static", 16)
    planner.plan(["a", "b"])
    planner.observe("a", [1, 0])
    before = json.dumps(planner.to_dict())

    def fail(**_):
        raise RuntimeError("no plan")

    monkeypatch.setattr("kray.planner.planner.RolloutBudget", fail)
    with pytest.raises(RuntimeError):
        planner.begin(["a", "b"])
    assert json.dumps(planner.to_dict()) == before
