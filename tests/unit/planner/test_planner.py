"""The planner: plans of each mode on the same evidence, and the metrics of a step."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.planner import Beliefs, KnapsackPlanner
from kray.planner.metrics import STATUSES, status, step_metrics, transition_matrix
from kray.planner.planner import AT_ONCE
from kray.records import Allocation


def seen(planner, labels):
    """Gives each prompt of {id: (successes, trials)} one visit with those labels."""
    planner.beliefs.begin_visit(list(labels))
    for prompt, (passed, trials) in labels.items():
        planner.observe(prompt, [1] * passed + [0] * (trials - passed))


@given(
    st.sampled_from(sorted(AT_ONCE)),
    st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 6), st.integers(0, 6))), min_size=1, max_size=40),
    st.integers(0, 4),
    st.integers(0, 12),
    st.data(),
)
@settings(max_examples=200)
def test_every_mode_spends_the_budget_within_the_bounds(mode, history, lower, width, data):
    m = len(history)
    budget = data.draw(st.integers(lower * m, (lower + width) * m))
    planner = KnapsackPlanner(mode, 512, lower, lower + width, Beliefs())
    seen(planner, {str(i): (h[0], h[0] + h[1]) for i, h in enumerate(history) if h})
    plan = planner.plan([str(i) for i in range(m)], budget)
    assert plan.budgets.dtype == np.int64
    assert plan.budgets.sum() == budget
    assert (plan.budgets >= lower).all()
    assert (plan.budgets <= lower + width).all()
    assert plan.weights.sum() == budget
    assert mode == "weight_only" or plan.weights.tolist() == plan.budgets.tolist()
    assert ((plan.expected_success > 0) & (plan.expected_success < 1)).all()
    assert np.isfinite(plan.expected_value).all()
    assert (plan.expected_value >= 0).all()


def test_static_needs_no_fallback():
    planner = KnapsackPlanner("static", 40, 2, 128, Beliefs(discount=1.0, fit_prior=False))
    seen(planner, {"dead": (0, 200), "hard": (0, 16), "harder": (0, 32), "mid": (8, 16), "solved": (32, 32)})
    n = dict(
        zip(
            ["dead", "hard", "harder", "mid", "solved", "new"],
            planner.plan(["dead", "hard", "harder", "mid", "solved", "new"]).budgets.tolist(),
            strict=True,
        )
    )
    assert n["hard"] > n["harder"] > n["dead"]
    assert n["solved"] == 2
    assert n["new"] > 2


def test_uniform_gives_the_remainder_to_the_first():
    planner = KnapsackPlanner("uniform", 17, 2, 8)
    assert planner.plan(["a", "b", "c", "d", "e"]).budgets.tolist() == [4, 4, 3, 3, 3]
    assert planner.plan([], budget=0).budgets.shape == (0,)


def test_paper_is_uniform_in_the_first_epoch():
    assert KnapsackPlanner("paper", 16).plan(list("abcd")).budgets.tolist() == [4, 4, 4, 4]


def test_paper_plans_on_the_point_estimate_of_the_previous_visit():
    planner = KnapsackPlanner("paper", 48, 2, 128)
    seen(planner, {"solved": (8, 8), "unsolved": (0, 8), "hard": (1, 8), "mid": (4, 8)})
    n = dict(
        zip(
            ids := ["solved", "unsolved", "hard", "mid", "new", "new2"], planner.plan(ids).budgets.tolist(), strict=True
        )
    )
    assert n["solved"] == n["unsolved"] == 2  # no value at all in a point estimate of 0 or 1
    assert n["new"] == n["new2"] == 8  # their uniform share
    assert n["hard"] > n["mid"] > 2
    assert sum(n.values()) == 48


def test_paper_falls_back_to_unsolved_then_solved_prompts():
    planner = KnapsackPlanner("paper", 30, 2, 10)
    labels = {"solved": (8, 8), "u1": (0, 8), "u2": (0, 8), "mid": (4, 8)}
    seen(planner, labels)
    assert planner.plan(list(labels)).budgets.tolist() == [2, 9, 9, 10]
    assert planner.plan(list(labels), budget=35).budgets.tolist() == [5, 10, 10, 10]


def test_a_plan_begins_a_visit():
    planner = KnapsackPlanner("static", 16, beliefs=Beliefs(discount=0.5))
    planner.plan(["a", "b"])
    planner.observe("a", [1] * 4)
    plan = planner.plan(["a", "b"])
    assert plan.expected_success.tolist() == [3 / 4, 1 / 2]
    assert planner.beliefs.visits(["a", "b"]).tolist() == [1, 0]


def test_a_saved_planner_makes_the_same_plans():
    rng = np.random.default_rng(0)
    ids = [f"p{i}" for i in range(64)]
    one = KnapsackPlanner("static", 512)
    for _ in range(2):
        plan = one.plan(ids)
        for prompt, n in zip(ids, plan.budgets, strict=True):
            one.observe(prompt, rng.binomial(1, rng.uniform(), n))
    other = KnapsackPlanner("static", 512)
    other.load_dict(json.loads(json.dumps(one.to_dict())))
    a, b = one.plan(ids), other.plan(ids)
    np.testing.assert_array_equal(a.budgets, b.budgets)
    np.testing.assert_array_equal(a.expected_value, b.expected_value)
    with pytest.raises(ValueError, match="version"):
        other.load_dict({"version": 2})


@pytest.mark.parametrize(
    ("match", "arguments", "m", "budget"),
    [
        (r"plan\.mode=best", {"mode": "best"}, 1, None),
        (r"plan\.budget=7 is less than plan\.lower=2", {"budget": 7}, 4, None),
        (r"plan\.budget=100 is more than plan\.upper=8", {"upper": 8}, 4, 100),
        (r"plan\.budget=-1", {"budget": -1}, 1, None),
        (r"plan\.budget=2\.5", {}, 1, 2.5),
        (r"plan\.lower 9 is above plan\.upper 8", {"lower": 9, "upper": 8}, 1, None),
    ],
)
def test_infeasible_plans_are_named_and_change_nothing(match, arguments, m, budget):
    beliefs = Beliefs()
    with pytest.raises(ValueError, match=match):
        KnapsackPlanner(**{"budget": 16, **arguments}, beliefs=beliefs).plan([str(i) for i in range(m)], budget)
    assert len(beliefs) == 0


def test_statuses_and_their_transitions():
    trials = np.array([0, 8, 10, 10, 10, 10, 8])
    before = status([0, 0, 2, 3, 7, 8, 8], trials)
    assert before.tolist() == [-1, 0, 1, 2, 2, 3, 4]
    matrix = transition_matrix(before, [0, 0, 2, 2, 3, -1, 4])
    assert matrix.shape == (5, 5)
    assert matrix.sum() == 5
    assert matrix[2].tolist() == [0, 0, 1, 1, 0]


def test_step_metrics():
    plan = Allocation(
        list("abcd"),
        np.array([2, 4, 8, 2]),
        np.ones(4),
        np.array([0.1, 0.5, 0.25, 0.9]),
        np.array([0.01, 0.1, 0.1, 0.02]),
    )
    found = step_metrics(plan, [0, 2, 1, 2], [2, 4, 8, 2])
    assert found["budget/min"] == 2
    assert found["budget/max"] == 8
    assert found["budget/p50"] == 3
    assert found["group/effective_ratio_rollouts"] == 12 / 16
    assert found["group/effective_ratio_prompts"] == 2 / 4
    assert found["planner/value_planned"] == pytest.approx(0.23)
    assert found["planner/value_realised"] == pytest.approx(0.5**3 + (1 / 8) * (7 / 8) ** 2)
    shares = [found[f"budget/share_{name}"] for name in STATUSES]
    assert shares == [2 / 16, 8 / 16, 4 / 16, 0, 2 / 16]
    assert found["budget/share_unlabelled"] == 0
    known = step_metrics(plan, [0, 2, 1, 2], [2, 4, 8, 2], previous_status=[-1, 4, 4, 4])
    assert known["budget/share_unlabelled"] == 2 / 16
    assert known["budget/share_always_solved"] == 14 / 16
    assert all(isinstance(x, float) for x in found.values())
    with pytest.raises(ValueError, match="successes"):
        step_metrics(plan, [1], [1])


def test_an_empty_step_has_nan_metrics():
    nothing = np.zeros(0)
    found = step_metrics(Allocation([], nothing, nothing, nothing, nothing), [], [])
    assert np.isnan(found["budget/max"])
    assert np.isnan(found["planner/brier"])


@pytest.mark.parametrize("mode", ["static", "uniform", "paper"])
def test_a_withdrawn_step_leaves_no_trace(mode):
    planner, straight = KnapsackPlanner(mode, 80, 2, 40), KnapsackPlanner(mode, 80, 2, 40)
    ids = [f"p{i}" for i in range(30)]
    rng = np.random.default_rng(3)
    for one in (planner, straight):
        rng = np.random.default_rng(3)
        for prompt_id, budget in zip(ids[:20], one.plan(ids[:20]).budgets, strict=True):
            one.observe(prompt_id, rng.integers(0, 2, budget))
    planner.plan(ids[10:])  # prompts seen and unseen
    for prompt_id in ids[10:15]:
        planner.observe(prompt_id, [1, 0, 1])
    planner.withdraw()
    planner.withdraw()  # nothing left to withdraw
    first, second = planner.plan(ids), straight.plan(ids)
    np.testing.assert_array_equal(first.budgets, second.budgets)
    np.testing.assert_array_equal(first.expected_success, second.expected_success)


def test_a_plan_section_makes_a_planner():
    from kray.config import PlanConfig

    plan = PlanConfig(mode="online", value="grpo", budget=64, refit_every=3, discount=0.25, candidates=2.0)
    planner = KnapsackPlanner.of(plan)
    assert (planner.mode, planner.settings.value, planner.settings.candidates) == ("online", "grpo", 2.0)
    assert (planner.settings.refit_every, planner.beliefs.discounts) == (3, (0.25, 0.25))
    assert planner.begin(list("abcd"), 32).room() == 8
    with pytest.raises(ValueError, match=r"plan\.marginal"):
        KnapsackPlanner.of(PlanConfig(value="grpo", marginal="hybrid"))


def test_the_prior_is_refitted_every_refit_every_steps():
    planner = KnapsackPlanner("uniform", 100, refit_every=4)
    ids, fits = [f"p{i}" for i in range(25)], []
    for step in range(12):
        before = planner.beliefs.prior_alpha, planner.beliefs.prior_beta
        planner.plan(ids)
        fits += [step] if (planner.beliefs.prior_alpha, planner.beliefs.prior_beta) != before else []
        for i, prompt in enumerate(ids):
            planner.observe(prompt, [float(i > step)] * 3 + [float(i % 2)])
    assert fits == [1, 2, 3, 4, 8]  # every step while little is known, then each fourth
