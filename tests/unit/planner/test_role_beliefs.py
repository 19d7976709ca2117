"""Beliefs by role: the same arithmetic as the planner's, kept apart for each role."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.plan_modes import PlanConfig
from kray.planner import KnapsackPlanner
from kray.planner.role_beliefs import RoleBeliefs

IDS = [f"p{i}" for i in range(30)]
SEEDS = st.integers(0, 10**6)


def rewards(rng, rate=0.5):
    return [(rng.random(rng.integers(1, 5)) < rate).astype(float) for _ in IDS]


@settings(max_examples=20)
@given(SEEDS, st.booleans())
def test_a_role_is_believed_as_the_planner_believes(seed, calibrate):
    """With the same rewards the baselines of a role are those that the planner has for its own."""
    rng, plan = (
        np.random.default_rng(seed),
        PlanConfig(mode="uniform", budget=90, lower=1, calibrate=calibrate, value="paper"),
    )
    planner, roles = KnapsackPlanner.of(plan), RoleBeliefs(plan)
    for _ in range(6):
        step = planner.begin(IDS)
        taken = step.take()
        given_back = {}
        while taken:
            for prompt_id, count in taken:
                labels = (rng.random(count) < 0.3).astype(float)
                given_back.setdefault(prompt_id, []).extend(labels.tolist())
                step.observe(prompt_id, labels.tolist())
            taken = step.take()
        expected = step.allocation().beliefs
        found = roles.visit("second", IDS, [np.array(given_back[i]) for i in IDS])
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=10)
@given(SEEDS)
def test_state_survives_a_checkpoint(seed):
    rng, plan = np.random.default_rng(seed), PlanConfig()
    roles, again = RoleBeliefs(plan), RoleBeliefs(plan)
    for _ in range(3):
        roles.visit("second", IDS, rewards(rng))
        roles.visit("third", IDS[:10], rewards(rng, 0.9)[:10])
    again.load_dict(json.loads(json.dumps(roles.to_dict())))
    for role in ("second", "third", "new"):
        given_now = rewards(rng)
        np.testing.assert_array_equal(roles.visit(role, IDS, given_now), again.visit(role, IDS, given_now))
    assert roles.to_dict() == again.to_dict()


def test_roles_do_not_share_what_they_learn():
    rng, plan = np.random.default_rng(0), PlanConfig()
    roles, alone = RoleBeliefs(plan), RoleBeliefs(plan)
    for _ in range(4):
        mine = rewards(rng, 0.2)
        roles.visit("third", IDS, rewards(rng, 0.9))
        np.testing.assert_array_equal(roles.visit("second", IDS, mine), alone.visit("second", IDS, mine))


def test_baseline_does_not_know_the_rewards_it_is_compared_with():
    rng, plan = np.random.default_rng(0), PlanConfig()
    one, two = RoleBeliefs(plan), RoleBeliefs(plan)
    for roles in (one, two):
        roles.visit("second", IDS, [np.array([0.0, 1.0])] * len(IDS))
    won, lost = [np.ones(3)] * len(IDS), [np.zeros(3)] * len(IDS)
    np.testing.assert_array_equal(one.visit("second", IDS, won), two.visit("second", IDS, lost))
    assert not np.array_equal(one.visit("second", IDS, rewards(rng)), two.visit("second", IDS, rewards(rng)))
