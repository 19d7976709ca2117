"""The simulated policy: its advantages are the learner's, groups of one teach under the belief, and further passes pay while
there is signal left.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kray.simulate.policy import BASELINES, CLIP_HIGH, CLIP_LOW, StepGroups, Update, advantages, learn
from kray.simulate.populations import SHAPES
from kray.simulate.study import CALIBRATED, ESTIMATORS, study
from kray.simulate.world import World, simulate
from kray.train.advantages import batch_advantages, belief_advantages, group_advantages

ONE_PASS = Update(length=0.5, noise=0.0, transfer=0.0)


def groups_of(budgets, passed, beliefs=None, weights=None) -> StepGroups:
    budgets = np.asarray(budgets)
    beliefs = np.ones((len(budgets), 2)) if beliefs is None else np.asarray(beliefs, dtype=np.float64)
    weights = budgets.astype(float) if weights is None else np.asarray(weights, dtype=np.float64)
    return StepGroups(np.arange(len(budgets)), budgets, np.asarray(passed, dtype=np.float64), weights, beliefs)


def steps_of(z: np.ndarray, groups: StepGroups, update: Update) -> np.ndarray:
    after = z.copy()
    learn(after, groups, update)
    return after - z


@st.composite
def drawn_groups(draw) -> StepGroups:
    budgets = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    passed = [draw(st.integers(0, n)) for n in budgets]
    strength = st.floats(0.01, 50)
    return groups_of(budgets, passed, [(draw(strength), draw(strength)) for _ in budgets])


@pytest.mark.parametrize("baseline", BASELINES)
@given(groups=drawn_groups())
def test_advantages_are_the_learners(baseline, groups):
    pairs = [
        (row, float(j < s))
        for row, (n, s) in enumerate(zip(groups.budgets, groups.passed, strict=True))
        for j in range(n)
    ]
    group_R, rewards_R = torch.tensor([row for row, _ in pairs]), torch.tensor([reward for _, reward in pairs])
    expected = {
        "group": lambda: group_advantages(rewards_R, group_R, scale=True),
        "belief": lambda: belief_advantages(rewards_R, group_R, torch.tensor(groups.beliefs), scale=True),
        "batch": lambda: batch_advantages(rewards_R, scale=True),
    }[baseline]()
    success, failure = advantages(baseline, groups)
    found = [success[row] if reward else failure[row] for row, reward in pairs]
    assert found == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)


def test_a_strong_belief_is_the_exact_baseline():
    p = np.array([0.02, 0.3, 0.9])
    success, failure = advantages("belief", groups_of([1, 4, 8], [1, 2, 8], 1e9 * np.stack([p, 1 - p], axis=1)))
    assert success == pytest.approx((1 - p) / np.sqrt(p * (1 - p)), rel=1e-6)
    assert failure == pytest.approx(-p / np.sqrt(p * (1 - p)), rel=1e-6)


def test_nothing_known_and_unknown_baselines():
    success, failure = advantages("belief", groups_of([1, 0], [1, 0], np.zeros((2, 2))))
    assert success.tolist() == failure.tolist() == [0, 0]
    with pytest.raises(ValueError, match="baseline rloo"):
        advantages("rloo", groups_of([2], [1]))


@pytest.mark.parametrize(("baseline", "teaches"), [("group", False), ("belief", True), ("batch", True)])
def test_groups_of_one(baseline, teaches):
    moved = steps_of(np.zeros(2), groups_of([1, 1], [1, 0]), Update(0.5, 1.0, 0.0, baseline))
    assert (moved > 0).all() == teaches
    assert (moved == 0).all() != teaches


def test_the_signal_of_a_group_is_that_of_grpo():
    n, s, w = np.array([8, 8, 4, 2]), np.array([1, 4, 3, 2]), np.array([8, 2, 4, 2])
    for z in (np.zeros(4), np.array([-3.0, 0.0, 2.0, 5.0])):
        gradient = w / n * np.sqrt(s * (n - s))
        moved = steps_of(z, groups_of(n, s, weights=w), ONE_PASS)
        assert moved == pytest.approx(0.5 * gradient / np.linalg.norm(gradient))


def test_a_group_counts_by_its_weight_and_a_step_by_shares_alone():
    z, n, s = np.array([-1.0, -1.0]), [4, 4], [1, 1]
    single, double = steps_of(z, groups_of(n, s, weights=[4, 8]), ONE_PASS)
    assert double == pytest.approx(2 * single)
    for baseline in BASELINES:
        update = Update(0.5, 1.0, 0.1, baseline)
        one, ten = (steps_of(z, groups_of(n, s, weights=np.array([4, 8]) * k), update) for k in (1, 10))
        assert one == pytest.approx(ten)


def test_noise_takes_length_from_the_signal():
    z, groups = np.zeros(64), groups_of([1] * 64, [1, 0] * 32)
    quiet, loud = (steps_of(z, groups, Update(0.5, noise, 0.0, "belief")).sum() for noise in (0.0, 2.0))
    assert 0 < loud < quiet
    assert np.linalg.norm(steps_of(z, groups, Update(0.5, 0.0, 0.0, "belief"))) == pytest.approx(0.5)


def test_further_passes_pay_until_the_clip_and_cost_the_other_prompts():
    z, groups = np.array([-2.0, 0.0]), groups_of([8], [2])
    own, other = zip(
        *(steps_of(z, groups, Update(0.5, 0.2, 0.0, epochs=k, overshoot=0.01)) for k in (1, 2, 64)), strict=True
    )
    assert 0 == other[0] > other[1] > other[2]
    gained = [x - y for x, y in zip(own, other, strict=True)]
    assert gained[0] < gained[1] < gained[2]
    p, start = 1 / (1 + np.exp(-z[0] - gained[2])), 1 / (1 + np.exp(-z[0]))
    # no pass begins with a success or a failure that is clipped, and the last one moves by at most .5
    assert p / start > 1 + CLIP_HIGH
    assert 1 - 1 / (1 + np.exp(-z[0] - gained[2] + 0.5)) >= (1 - CLIP_LOW) * (1 - start)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_spend_what_they_say_and_chance_comes_from_the_seed(name):
    world = World(SHAPES["u_shaped"], **CALIBRATED | {"prompts": 96, "per_step": 8, "steps": 6})
    found = simulate(world, 0, ESTIMATORS[name])
    total = found["rollouts_a_step"] * found["steps"]
    assert total == world.budget * world.steps * ESTIMATORS[name].get("times", 1)
    assert simulate(world, 0, ESTIMATORS[name])["learned"] == found["learned"]
    assert simulate(world, 1, ESTIMATORS[name])["learned"] != found["learned"]


def test_the_order_of_real_runs():
    """docs/planner.md has the runs."""
    names = ("uniform", "uniform 2 epochs", "uniform 3 epochs", "belief each 1", "belief each 1 3 epochs")
    found = study(World(SHAPES["u_shaped"], **CALIBRATED), {name: ESTIMATORS[name] for name in names}, 2)
    learned = {name: float(np.mean(figures["learned"])) for name, figures in found.items()}
    assert learned["uniform"] < learned["uniform 3 epochs"] < learned["uniform 2 epochs"]
    assert learned["uniform"] < learned["belief each 1"] < learned["belief each 1 3 epochs"]
    assert learned["uniform 2 epochs"] < learned["belief each 1 3 epochs"]
