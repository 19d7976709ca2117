"""The audit finds what must not be, in logs of runs that went back."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from kray.faults.audit import audit, regenerated, surviving
from kray.faults.injector import KINDS, plan_faults
from kray.plan_modes import PlanConfig
from kray.planner import KnapsackPlanner
from kray.prompts.sampler import PromptSampler

IDS = [f"p{i}" for i in range(6)]
PLAN = PlanConfig(budget=12, lower=2, upper=8)


def a_run(order: list[tuple[int, int]]) -> tuple[list[dict], dict]:
    """The log of a run that did these (learner's restarts, step), and the state at its end."""
    rng, sampler = np.random.default_rng(0), PromptSampler(IDS, 3, 0)
    planners, lines = {0: KnapsackPlanner.of(PLAN).to_dict()}, []
    for learner, step in order:
        planner = KnapsackPlanner.of(PLAN)
        planner.load_dict(planners[step - 1])
        ids = [IDS[i] for i in sampler.take(step - 1)]
        budgets = planner.plan(ids).budgets
        labels = {i: rng.integers(0, 2, n).tolist() for i, n in zip(ids, budgets, strict=True)}
        for prompt_id, rewards in labels.items():
            planner.observe(prompt_id, rewards)
        planners[step] = planner.to_dict()
        counts = {"successes": [sum(labels[i]) for i in ids], "trials": [len(labels[i]) for i in ids]}
        base = {"t": float(len(lines)), "life": 0, "step": step}
        lines.append(base | {"event": "visits", "ids": ids, "budgets": budgets.tolist()} | counts)
        tasks = {"submitted": step, "waiting": 0, "running": 0, "ended": step}
        rollouts = [[i, list(range(len(labels[i])))] for i in ids]
        lines.append(base | {"event": "learned", "learner": learner, "rollouts": rollouts, "tasks": tasks})
    return lines, {"planner": planners[order[-1][1]]}


ORDER = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (2, 4)]


def check(lines: list[dict], final: dict, steps: int = 4) -> list[str]:
    return audit(lines, steps, IDS, PromptSampler(IDS, 3, 0), PLAN, final)


def test_rewound_run_is_sound_and_repeated_steps_are_counted():
    lines, final = a_run(ORDER)
    assert check(lines, final) == []
    assert regenerated(lines, surviving(lines)[0]) == 3 * 12
    assert check(lines[:-2], final) == ["3 of 4 steps were done"]


@pytest.mark.parametrize(
    ("line", "harm", "found"),
    [
        (-1, lambda line: line["rollouts"][0][1].append(0), "trained a rollout"),
        (-1, lambda line: line["rollouts"].pop(), "other rollouts than came back"),
        (-1, lambda line: line["tasks"].update(ended=3), "do not add up"),
        (7, lambda line: line.update(learner=0), "trained twice without going back"),
        (-2, lambda line: line["ids"].__setitem__(0, "p9"), "other prompts than the sampler"),
        (-2, lambda line: line["successes"].__setitem__(0, 99), "not those that a replay"),
        (-2, lambda line: line["budgets"].__setitem__(0, 99), "has a budget of"),
    ],
)
def test_what_must_not_be_is_found(line, harm, found):
    lines, final = a_run(ORDER)
    lines = copy.deepcopy(lines)
    harm(lines[line])
    assert any(found in problem for problem in check(lines, final))


def test_fault_plan_depends_on_shares_and_seed_alone():
    planned = plan_faults(54, 80, 3)
    assert planned == plan_faults(54, 80, 3) != plan_faults(54, 80, 4)
    assert len(planned) == 54
    assert {fault.kind for fault in planned} == KINDS.keys()
    assert [fault.step for fault in planned] == sorted(fault.step for fault in planned)
