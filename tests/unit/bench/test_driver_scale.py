"""The driver's cost of a task does not depend on how many engines there are or how much waits."""

from __future__ import annotations

import pytest
from logged_lines import logged_lines

from kray.bench import driver_scale as scale
from kray.planner import KnapsackPlanner


def step(engines: int, prompts: int):
    planner = KnapsackPlanner("static", 8 * prompts)
    row, collected = scale.step(planner, engines, prompts, 8, 8, 0, 1)
    assert row["rollouts"] == 8 * prompts == sum(len(group.rollouts) for group in collected.groups)
    assert {rollout.reward for group in collected.groups for rollout in group.rollouts} == {0.0}
    return row


def share(row, *parts: str) -> float:
    """Microseconds a task in these parts."""
    return 1e6 * sum(row["parts_s"].get(part, 0.0) for part in parts) / row["tasks"]


def test_a_task_costs_the_same_on_a_thousand_engines():
    few, many = step(10, 512), step(1000, 512)
    assert many["tasks"] > few["tasks"]
    parts = ("size of the pool", "dispatch", "report", "make tasks", "labels to the plan")
    assert share(many, *parts) < 3 * share(few, *parts) + 20  # us; looking at every engine each time makes it 400


def test_what_beliefs_of_many_prompts_weigh_is_measured(tmp_path):
    with logged_lines() as lines:
        found, planner = scale.beliefs(5000, tmp_path)
    assert len(planner.beliefs) == 5000
    assert 0 < found["checkpoint_mib"] < 5
    assert lines
    assert planner.beliefs.prior_alpha == pytest.approx(0.4, rel=0.3)
    assert planner.beliefs.prior_beta == pytest.approx(0.6, rel=0.3)
