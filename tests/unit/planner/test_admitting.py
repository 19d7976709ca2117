"""Plans over candidates that are made at once: exact choices, the candidates' beliefs, and undone steps."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.bench.planner import exact_optimum
from kray.plan_modes import PlanConfig
from kray.planner import BaselineValue, Beliefs, KnapsackPlanner
from kray.planner.admitting import Candidates, choose, offer_of

shapes = st.floats(0.05, 30)


def optimum_in_blocks(value, budget, least, block, upper, cost):
    """Best total value where each prompt gets nothing or from `block` to `upper` rollouts, by trying all."""
    best = {0: 0.0}
    for i in range(len(value)):
        one = np.zeros(len(value), dtype=np.int64)
        found: dict[int, float] = {}
        for n in [*([] if least[i] else [0]), *range(block, upper + 1)]:
            one[i] = n
            gained = value.total(one)[i]
            for spent, total in best.items():
                more = spent + n * int(cost[i])
                if more <= budget:
                    found[more] = max(found.get(more, -1.0), total + gained)
        best = found
    return max(best.values())


@given(st.lists(st.tuples(shapes, shapes), min_size=1, max_size=9), st.data(), st.floats(0, 20), st.booleans())
@settings(max_examples=200)
def test_choices_with_single_rollouts_are_exact(pairs, data, tau, many):
    alpha, beta = np.array(pairs * (3 if many else 1)).T
    value, m = BaselineValue(alpha, beta, tau=tau), len(alpha)
    least = np.array(data.draw(st.lists(st.integers(0, 1), min_size=m, max_size=m)))
    upper = data.draw(st.integers(1, 6))
    budget = data.draw(st.integers(int(least.sum()), min(40, upper * m)))
    plan = PlanConfig(budget=budget, lower=1, upper=upper, value="baseline")
    rows, held = choose(plan, value, least, 1, np.ones(m), budget)
    n = np.zeros(m, dtype=np.int64)
    n[rows] = held
    assert n.sum() == budget
    assert (n >= least).all()
    assert n.max(initial=0) <= upper
    assert value.total(n).sum() == pytest.approx(exact_optimum(value, budget, least, np.full(m, upper)), rel=1e-9)


@given(st.lists(st.tuples(shapes, shapes), min_size=1, max_size=6), st.data(), st.integers(1, 3), st.booleans())
@settings(max_examples=150)
def test_choices_in_blocks_or_tokens_are_within_one_block(pairs, data, block, tokens):
    alpha, beta = np.array(pairs).T
    value, m = BaselineValue(alpha, beta), len(alpha)
    least = block * np.array(data.draw(st.lists(st.integers(0, 1), min_size=m, max_size=m)))
    cost = np.array(data.draw(st.lists(st.integers(1, 4 if tokens else 1), min_size=m, max_size=m)), dtype=float)
    budget = int(cost @ least) + data.draw(st.integers(0, 20))
    plan = PlanConfig(lower=block, upper=6, value="baseline", unit="tokens" if tokens else "rollouts", token_budget=9)
    if not tokens:
        budget = min(budget, 6 * m)
    rows, held = choose(plan, value, least, block, cost, budget)
    n = np.zeros(m, dtype=np.int64)
    n[rows] = held
    assert cost @ n <= budget
    assert (n >= least).all()
    assert ((n == 0) | (n >= block)).all()
    one = value.total(np.full(m, block)).max()
    assert value.total(n).sum() >= optimum_in_blocks(value, budget, least, block, 6, cost) - one - 1e-12


def test_equal_values_go_to_the_first():
    value = BaselineValue(np.ones(50), np.ones(50), tau=0.1)
    rows, held = choose(PlanConfig(value="baseline", lower=1), value, np.arange(50) // 48, 1, np.ones(50), 6)
    assert rows.tolist() == [0, 1, 2, 3, 48, 49]
    assert held.tolist() == [1] * 6


def planner(**known):
    return KnapsackPlanner(**{"mode": "static", "budget": 8, "lower": 1, "value": "baseline", "candidates": 0} | known)


def carry_out(step, rates, rng):
    for prompt, rollouts in step.take(None):
        step.observe(prompt, (rng.random(rollouts) < rates[prompt]).astype(float))
    assert step.done
    return step.allocation()


@given(st.integers(0, 2**32), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_kept_candidates_give_the_plans_of_plain_lists(seed, labelled, online_offers):
    rng = np.random.default_rng(seed)
    ids = [f"p{i}" for i in range(40)]
    labels = [f"kind-{i % 2}" for i in range(40)] if labelled else None
    rates = dict(zip(ids, rng.beta(0.5, 0.5, 40).tolist(), strict=True))
    known, kept, plain = Candidates(ids, labels), planner(), planner()
    for step in range(6):
        at = np.sort(rng.permutation(40)[:25]) if online_offers else np.arange(40)
        due = rng.random(len(at)) < 0.1
        due &= np.cumsum(due) <= 8
        given_labels = None if labels is None else [labels[i] for i in at]
        steps = kept.begin(known.offer(at), due=due), plain.begin([ids[i] for i in at], due=due, labels=given_labels)
        found = [carry_out(one, rates, np.random.default_rng(step)) for one in steps]
        assert found[0].prompt_ids == found[1].prompt_ids == [ids[i] for i in at[steps[0].positions]]
        assert found[0].budgets.tolist() == found[1].budgets.tolist()
        assert found[0].budgets.sum() == 8
        np.testing.assert_array_equal(found[0].beliefs, found[1].beliefs)
        assert set(np.flatnonzero(due)) <= set(steps[0].positions.tolist())
        # with labels the two number them in another order
        assert labelled or json.dumps(kept.to_dict()) == json.dumps(plain.to_dict())
        assert kept.beliefs.priors() == plain.beliefs.priors()
    # only what was visited is in the beliefs
    assert (kept.beliefs.visits(list(kept.beliefs._row)) > 0).all()


def test_a_plan_over_candidates_that_all_fit_has_the_beliefs_of_a_visit():
    ids = [f"p{i}" for i in range(6)]
    labels = ["a", "b"] * 3
    one, other = planner(budget=12), planner(budget=12, candidates=1.0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        plans = [each.begin(ids, labels=labels, due=np.ones(6, dtype=bool)).allocation() for each in (one, other)]
        np.testing.assert_array_equal(plans[0].beliefs, plans[1].beliefs)
        for prompt in ids:
            rewards = rng.integers(0, 2, 3).astype(float)
            one.observe(prompt, rewards)
            other.observe(prompt, rewards)


def test_a_withdrawn_step_leaves_no_trace():
    one, straight = planner(), planner()
    ids = [f"p{i}" for i in range(30)]
    known = Candidates(ids)
    rates = dict.fromkeys(ids, 0.4)
    carry_out(one.begin(known.offer(np.arange(30))), rates, np.random.default_rng(1))
    carry_out(straight.begin(ids), rates, np.random.default_rng(1))
    carry_out(one.begin(known.offer(np.arange(30))), rates, np.random.default_rng(2))
    one.withdraw()
    plans = [carry_out(each.begin(ids), rates, np.random.default_rng(3)) for each in (one, straight)]
    assert plans[0].prompt_ids == plans[1].prompt_ids
    assert plans[0].budgets.tolist() == plans[1].budgets.tolist()


def test_candidates_follow_beliefs_that_grow_elsewhere_or_are_replaced():
    ids, one = [f"p{i}" for i in range(10)], planner(budget=3, fit_prior=False, tau=0.1)
    known, everything = Candidates(ids), np.arange(10)
    carry_out(one.begin(known.offer(everything)), dict.fromkeys(ids, 1.0), np.random.default_rng(0))
    # these now look sure to be solved, hence worthless
    for prompt in ids[3:7]:
        one.observe(prompt, np.ones(200))
    assert one.begin(known.offer(everything)).allocation().prompt_ids == ids[7:]
    one.withdraw()
    one.beliefs = Beliefs()
    assert one.begin(known.offer(everything)).allocation().prompt_ids == ids[:3]


def test_lost_rollouts_go_to_prompts_of_the_plan():
    step = planner(budget=4, tau=0.1).begin([f"p{i}" for i in range(9)])
    assert step.take(None) == [("p0", 1), ("p1", 1), ("p2", 1), ("p3", 1)]
    step.lost("p1")
    again = step.take(None)
    assert [rollouts for _, rollouts in again] == [1]
    assert again[0][0] in {"p0", "p2", "p3"}


def test_features_of_kept_candidates_are_remembered_for_what_is_visited():
    one = planner(prior_features=True)
    known = Candidates([f"p{i}" for i in range(20)], features=np.arange(40.0).reshape(20, 2))
    step = one.begin(known.offer(np.arange(20)))
    assert len(one.features.rows()) == len(step.positions) == 8


def test_what_is_refused():
    with pytest.raises(ValueError, match="twice"):
        Candidates(["a", "a"])
    with pytest.raises(ValueError, match="labels"):
        Candidates(["a", "b"], labels=["x"])
    with pytest.raises(ValueError, match="features"):
        Candidates(["a", "b"], features=[[1.0]])
    with pytest.raises(ValueError, match="due"):
        planner().begin(["a", "b"], 2, due=[True])
    with pytest.raises(ValueError, match=r"plan\.budget=1 is less than 2"):
        planner().begin(["a", "b"], 1, due=[True, True])
    with pytest.raises(ValueError, match=r"plan\.candidates 0 .* plan\.mode dynamic_sampling"):
        planner(mode="dynamic_sampling")
    with pytest.raises(ValueError, match=r"plan\.candidates=0\.5"):
        planner(candidates=0.5)


def test_an_offer_is_a_sequence_of_ids():
    offer = offer_of(["a", "b", "c"]).candidates.offer(np.array([2, 0]))
    assert list(offer) == ["c", "a"]
    assert offer[1] == "a"
    assert offer[:1] == ["c"]
    assert len(offer) == 2
    assert offer_of(offer) is offer
