"""Plans of a step under any order of events: budgets, bounds, determinism, and each mode's reaction to labels."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.plan_modes import MARGINALS, NEED_LABELS, RESPEND
from kray.planner import MODES, Beliefs, BetaValue, GrpoValue, KnapsackPlanner, solve

SPENDING = [mode for mode in MODES if mode != "dynamic_sampling"]  # modes that spend the budget exactly


def drive(step, rates, rng, room=None, lose=0.0, batch=3):
    """Carries a step out with arrivals in a random order; returns the calls made and how often nothing was to be had."""
    in_flight, calls, waits = [], [], 0
    while not step.done:
        free = None if room is None else room - len(in_flight)
        chunks = step.take(step.room(free))
        for prompt, rollouts in chunks:
            assert rollouts > 0
            in_flight += [prompt] * rollouts
            calls.append((prompt, rollouts))
        assert room is None or len(in_flight) <= room
        assert step.in_flight == len(in_flight)
        waits += not chunks
        assert in_flight, "nothing in flight, nothing to take, and not done"
        for _ in range(min(len(in_flight), int(rng.integers(1, batch + 1)))):
            prompt = in_flight.pop(int(rng.integers(len(in_flight))))
            if rng.random() < lose:
                step.lost(prompt)
            else:
                step.observe(prompt, float(rng.random() < rates[prompt]))
    return calls, waits


def population(rng, m):
    return {f"p{i}": float(p) for i, p in enumerate(rng.beta(0.4, 0.6, m))}


options = st.fixed_dictionaries(
    {
        "lower": st.integers(0, 4),
        "marginal": st.sampled_from(MARGINALS),
        "pilot": st.integers(0, 6),
        "rounds": st.integers(1, 4),
        "in_flight": st.integers(0, 9),
        "weights": st.sampled_from(["rollouts", "uniform", "knapsack", "hindsight"]),
        "target_size": st.integers(2, 9),
    }
)


@given(
    st.sampled_from(SPENDING),
    options,
    st.integers(1, 12),
    st.integers(0, 12),
    st.integers(0, 2**32),
    st.one_of(st.none(), st.integers(1, 20)),
    st.sampled_from([0.0, 0.1, 0.6]),
)
@settings(max_examples=300)
def test_any_interleaving_spends_the_budget_within_the_bounds(mode, options, m, width, seed, room, lose):
    rng = np.random.default_rng(seed)
    lower = options["lower"]
    upper = lower + width
    budget = int(rng.integers(lower * m, upper * m + 1))
    planner = KnapsackPlanner(mode, budget, upper=upper, **options)
    rates = population(rng, m)
    for _ in range(2):
        step = planner.begin(list(rates))
        drive(step, rates, rng, room, lose)
        plan, lost = step.allocation(), step.metrics()["planner/lost"]
        assert (plan.budgets <= upper).all()
        # all prompts but in pilot_commit, which leaves out those it passes over
        learned = plan.budgets[plan.weights > 0]
        assert plan.weights.sum() == pytest.approx(learned.sum())
        assert mode == "pilot_commit" or len(learned) == np.count_nonzero(plan.budgets)
        if not lost:
            assert plan.budgets.sum() == budget
            assert (plan.budgets >= lower).all()
        elif mode not in RESPEND:
            assert plan.budgets.sum() + lost == budget
        else:
            assert plan.budgets.sum() <= budget
        assert (np.isfinite(plan.expected_value) & (plan.expected_value >= 0)).all()


@given(st.sampled_from(MODES), st.sampled_from(MARGINALS), st.integers(0, 2**32))
@settings(max_examples=60)
def test_equal_histories_give_equal_plans(mode, marginal, seed):
    found = []
    for _ in range(2):
        rng = np.random.default_rng(seed)
        rates = population(rng, 10)
        planner = KnapsackPlanner(mode, 60, marginal=marginal)
        calls = [drive(planner.begin(list(rates)), rates, rng, room=12, lose=0.05)[0] for _ in range(3)]
        found.append((calls, json.dumps(planner.to_dict())))
    assert found[0] == found[1]


@pytest.mark.parametrize("mode", MODES)
def test_a_withdrawn_step_leaves_no_trace(mode):
    planner, straight = (KnapsackPlanner(mode, 80, 2, 40) for _ in range(2))
    rates = population(np.random.default_rng(1), 30)
    ids = list(rates)
    for one in (planner, straight):
        drive(one.begin(ids[:20], 80), rates, np.random.default_rng(2))
    step = planner.begin(ids[5:], 80)
    for prompt, rollouts in step.take(None)[:7]:
        step.observe(prompt, [1] * rollouts)
    planner.withdraw()
    planner.withdraw()
    with pytest.raises(ValueError, match="withdrawn"):
        step.observe(ids[5], 1)
    calls = [drive(one.begin(ids, 80), rates, np.random.default_rng(3))[0] for one in (planner, straight)]
    assert calls[0] == calls[1]


@pytest.mark.parametrize("mode", sorted(set(SPENDING) - set(NEED_LABELS) - {"online"}))
def test_one_shot_modes_give_everything_at_once(mode):
    step = KnapsackPlanner(mode, 40).begin(list("abcde"))
    first = step.take(7)
    assert sum(n for _, n in first) == 7
    assert sum(n for _, n in step.take(None)) == 33
    assert step.take(None) == []
    assert not step.done
    for prompt, rollouts in zip(step.allocation().prompt_ids, step.allocation().budgets, strict=True):
        step.observe(prompt, np.zeros(rollouts))
    assert step.done


def test_online_without_labels_is_the_static_plan():
    rng = np.random.default_rng(0)
    for value in ("paper", "grpo"):
        static, online = (KnapsackPlanner(mode, 300, value=value) for mode in ("static", "online"))
        for planner in (static, online):
            planner.beliefs.fit_prior = False
            for i in range(40):
                planner.observe(f"p{i}", np.arange(12) < i % 13)
        ids = [f"p{i}" for i in rng.permutation(45)]
        np.testing.assert_array_equal(static.plan(ids).budgets, online.plan(ids).budgets)


def test_online_takes_the_best_rollout_now():
    """Each unit goes to the largest E[gain(n)] under the beliefs as they are, recomputed from scratch."""
    rng = np.random.default_rng(5)
    rates = population(rng, 12)
    ids = list(rates)
    for value, make in (("paper", BetaValue), ("grpo", GrpoValue)):
        planner = KnapsackPlanner("online", 90, 2, 30, value=value)
        step = planner.begin(ids)
        counts, in_flight = dict.fromkeys(ids, 0), []
        while not step.done:
            floors = min(counts.values()) < 2
            alpha, beta = planner.beliefs.posterior(ids)
            gains = make(alpha, beta).gain(np.array([counts[i] for i in ids]))
            for prompt, rollouts in step.take(1 if len(in_flight) < 20 else 0):
                assert floors or gains[ids.index(prompt)] == pytest.approx(gains.max(), rel=1e-9)
                counts[prompt] += rollouts
                in_flight += [prompt] * rollouts
            if len(in_flight) >= 20 or sum(counts.values()) == 90:
                prompt = in_flight.pop(0)
                step.observe(prompt, float(rng.random() < rates[prompt]))
        assert sum(counts.values()) == 90


def test_bulk_and_single_choices_agree(monkeypatch):
    rng = np.random.default_rng(2)
    ids = [f"p{i}" for i in range(200)]
    plans = []
    for bulk in (10, 10**9):
        monkeypatch.setattr("kray.planner.greedy.BULK", bulk)
        planner = KnapsackPlanner("online", 3000, 2, 60)
        planner.beliefs.fit_prior = False
        for i, prompt in enumerate(ids):
            planner.observe(prompt, np.arange(16) < i % 17)
        plans.append(planner.plan(ids).budgets)
    del rng
    np.testing.assert_array_equal(*plans)


def test_rounds_wait_for_their_labels():
    planner = KnapsackPlanner("rounds", 40, pilot=3, rounds=2)
    rates = dict.fromkeys("abcde", 0.4)
    step = planner.begin(list(rates))
    pilot = step.take(None)
    assert pilot == [(p, 3) for p in "abcde"]
    for prompt in "abcd":
        step.observe(prompt, [1, 0, 0])
        assert step.take(None) == []
    step.observe("e", [0, 0, 0])
    first = step.take(None)
    assert sum(n for _, n in first) == 13
    _, waits = drive_rest(step, first)
    assert waits == 1
    assert step.allocation().budgets.sum() == 40


def drive_rest(step, in_flight):
    rounds = 0
    while not step.done:
        for prompt, rollouts in in_flight:
            step.observe(prompt, [0] * rollouts)
        in_flight = step.take(None)
        rounds += bool(in_flight)
    return in_flight, rounds


def test_stop_at_mixed_prefers_groups_that_are_not_mixed():
    planner = KnapsackPlanner("online", 12, 2, 8, marginal="stop_at_mixed")
    step = planner.begin(["mixed", "unmixed"])
    step.take(4)
    step.observe("mixed", [0, 1])
    step.observe("unmixed", [0, 0])
    for _ in range(6):
        assert step.take(1) == [("unmixed", 1)]
    assert step.take(1) == [("mixed", 1)]  # the other is full
    with pytest.raises(ValueError, match="rewards of prompt unmixed must be 0 or 1"):
        step.observe("unmixed", 0.5)
    sized = KnapsackPlanner("online", 60, 2, 40, marginal="target_size", target_size=6).begin(["a", "b", "c"])
    for prompt, rollouts in sized.take(6):
        sized.observe(prompt, [0, 1] if prompt == "a" else [0] * rollouts)
    sized.take(12)
    assert sized.allocation().budgets[0] <= 6


def test_pilot_commit_spends_the_rest_on_intermediate_prompts():
    step = KnapsackPlanner("pilot_commit", 40, pilot=4).begin(["easy", "hard", "mid", "mid2"])
    labels = {"easy": [1] * 4, "hard": [0] * 4, "mid": [1, 0, 0, 0], "mid2": [1, 1, 0, 1]}
    for prompt, _ in step.take(None):
        step.observe(prompt, labels[prompt])
    assert dict(step.take(None)) == {"mid": 12, "mid2": 12}


@pytest.mark.parametrize("budget", [40, 16])
def test_pilot_commit_trains_on_what_it_commits_to(budget):
    step = KnapsackPlanner("pilot_commit", budget, pilot=4).begin(["easy", "hard", "mid", "mid2"])
    labels = {"easy": [1] * 4, "hard": [0] * 4, "mid": [1, 0, 0, 0], "mid2": [1, 1, 0, 1]}
    for prompt, _ in step.take(None):
        step.observe(prompt, labels[prompt])
    for prompt, rollouts in step.take(None):
        step.observe(prompt, [0] * rollouts)
    assert step.done
    assert step.allocation().weights.tolist() == ([0, 0, 16, 16] if budget == 40 else [4, 4, 4, 4])


@pytest.mark.parametrize("weights", ["rollouts", "uniform", "knapsack", "hindsight"])
def test_weights_sum_to_the_rollouts_trained_on(weights):
    step = KnapsackPlanner("dynamic_sampling", 16, candidates=3, target_groups=4, weights=weights).begin(
        [f"p{i}" for i in range(12)]
    )
    rng = np.random.default_rng(0)
    while not step.done:
        for prompt, rollouts in step.take(None):
            step.observe(prompt, rng.random(rollouts) < 0.2)
    plan = step.allocation()
    assert np.count_nonzero(plan.weights) == 4
    assert plan.weights.sum() == pytest.approx(plan.budgets[plan.weights > 0].sum())


COSTS = (1.0, 5.0, 10.0, 25.0, 100.0)


@given(
    st.sampled_from(SPENDING),
    st.sampled_from(["rollouts", "tokens"]),
    st.sampled_from([1.0, 2.0]),
    st.lists(st.sampled_from(COSTS), min_size=1, max_size=5),
    st.integers(0, 3),
    st.integers(0, 9),
    st.sampled_from([0.3, 1.0, 1.2]),
    st.integers(0, 2**32),
)
@settings(max_examples=400)
def test_no_rollout_fits_in_what_a_plan_leaves(mode, unit, candidates, costs, lower, width, length, seed):
    rng = np.random.default_rng(seed)
    upper, m = max(1, lower + width), len(costs)
    cost = np.array(costs if unit == "tokens" else [1.0] * m)
    ids = [f"p{i}" for i in range(m)]
    budget = int(rng.integers(1, int(upper * cost.sum()) + 1))
    options = {"budget": budget} if unit == "rollouts" else {"unit": unit, "token_budget": budget, "budget": m * upper}
    planner = KnapsackPlanner(mode, lower=lower, upper=upper, candidates=candidates, **options)
    for prompt in ids:
        planner.observe(prompt, rng.random(60) < rng.random() * 1.2 - 0.1)
    least = planner.least(m, cost)
    step = planner.begin(ids, max(budget, least), cost=cost)
    taken, spent = dict.fromkeys(ids, 0), 0.0
    while not step.done:
        for prompt, rollouts in step.take(None):
            tokens = length * cost[int(prompt[1:])] * rollouts  # shorter than expected, or longer
            step.observe(prompt, rng.random(rollouts) < 0.5, tokens=tokens)
            taken[prompt] += rollouts
            spent += tokens if unit == "tokens" else rollouts
    left = max(budget, least) - spent
    for n, price in zip(taken.values(), cost, strict=True):
        smallest = 1 if n else max(1, lower)  # a prompt that is not visited yet begins with `lower`
        assert n + smallest > upper or price * smallest > left - 1e-6, (taken, left)


def test_dynamic_sampling_trains_on_the_first_mixed_groups():
    planner = KnapsackPlanner("dynamic_sampling", 16, candidates=3, target_groups=4, lower=2)
    ids = [f"p{i}" for i in range(12)]
    step = planner.begin(ids)
    assert step.take(None) == [(f"p{i}", 4) for i in range(4)]
    for i in range(4):
        assert step.take(None) == []
        step.observe(ids[i], [0, 0, 0, int(i == 1)])
    assert not step.done
    assert step.take(None) == [(f"p{i}", 4) for i in range(4, 8)]
    for i in range(4, 8):
        step.observe(ids[i], [1, 0, 0, 0])
    assert step.done
    plan = step.allocation()
    assert plan.budgets.tolist() == [4] * 8 + [0] * 4
    assert plan.weights.tolist() == [0, 4, 0, 0, 4, 4, 4, 0, 0, 0, 0, 0]


def test_lost_rollouts_are_reallocated_or_forfeited():
    for mode, total in (("static", 40), ("online", 40), ("uniform", 37)):
        step = KnapsackPlanner(mode, 40, in_flight=100).begin(list("abcd"))
        taken = step.take(None)
        step.lost(taken[0][0], 3)
        again = step.take(None)
        assert all(prompt != taken[0][0] for prompt, _ in again)
        assert sum(step.allocation().budgets) == total
        assert step.metrics()["planner/lost"] == 3
        with pytest.raises(ValueError, match="rollouts"):
            step.lost("b", 1000)


@given(
    st.sampled_from(SPENDING),
    st.sampled_from(["paper", "grpo", "coba"]),
    st.integers(0, 2**32),
)
@settings(max_examples=80)
def test_a_budget_of_tokens_is_met_within_one_rollout(mode, value, seed):
    rng = np.random.default_rng(seed)
    rates = population(rng, 30)
    cost = rng.lognormal(5, 0.6, 30)
    budget = float(cost.sum()) * 8
    planner = KnapsackPlanner(mode, unit="tokens", token_budget=int(budget), value=value)
    for _ in range(2):
        step = planner.begin(list(rates), cost=cost)
        drive(step, rates, rng, room=40)
        plan = step.allocation()
        assert (plan.budgets >= 2).all()
        spent = float(cost @ plan.budgets)
        assert spent <= int(budget) + 1e-6
        assert spent >= 0.98 * budget
        assert spent >= int(budget) - cost.max()


def test_reported_tokens_replace_their_expectation():
    step = KnapsackPlanner("online", unit="tokens", token_budget=1000).begin(["a", "b"], cost=[10.0, 10.0])
    spent = 0
    while not step.done:
        for prompt, rollouts in step.take(4 - step.in_flight):
            step.observe(prompt, [0] * rollouts, tokens=25 * rollouts)  # all responses are far longer than expected
            spent += 25 * rollouts
    assert 1000 - 25 <= spent <= 1000 + 60


def test_returned_tokens_go_to_the_prompt_with_the_largest_gain():
    planner = KnapsackPlanner("online", unit="tokens", token_budget=108, beliefs=Beliefs(1.0, fit_prior=False))
    for prompt, passed in (("solved", 60), ("middling", 30)):
        planner.observe(prompt, np.arange(60) < passed)
    step = planner.begin(["solved", "middling"], cost=[8.0, 10.0])
    step.take(None)
    held = step.allocation().budgets.tolist()
    assert step.take(None) == []  # what is left does not pay for a rollout of the dearer one
    step.observe("solved", [1, 1], tokens=2)  # for 16 that were expected
    assert dict(step.take(None)).keys() == {"middling"}
    assert step.allocation().budgets[0] == held[0]


def test_the_least_budget_is_what_a_step_begins_with():
    for planner, due in (
        (KnapsackPlanner("static", unit="tokens", token_budget=50), None),
        (KnapsackPlanner("online", unit="tokens", token_budget=50, candidates=2), [True, False, True]),
    ):
        ids, cost = ["a", "b", "c"], [10.0, 30.0, 25.5]
        least = planner.least(3, cost, due)
        assert least == 2 * (10.0 + 25.5 + (30.0 if due is None else 0.0))
        assert planner.begin(ids, least, cost=cost, due=due).allocation().prompt_ids == ids
        with pytest.raises(ValueError, match="token_budget"):
            planner.begin(ids, least - 0.1, cost=cost, due=due)


def test_dynamic_sampling_without_candidates_keeps_its_budget():
    step = KnapsackPlanner("dynamic_sampling", 64, target_groups=4).begin([f"p{i}" for i in range(16)])
    assert step.take(None) == [(f"p{i}", 4) for i in range(16)]


@pytest.mark.parametrize("due", [[0, 1, 2, 3, 4, 5], [9, 4, 11, 2, 7], [11]])
def test_dynamic_sampling_opens_all_due_prompts_once(due):
    planner = KnapsackPlanner("dynamic_sampling", 16, candidates=3, target_groups=4, lower=2)
    ids = [f"p{i}" for i in range(12)]
    step = planner.begin(ids, due=np.isin(np.arange(12), due))
    first = dict(step.take(None))
    assert {f"p{i}" for i in due} <= first.keys()
    assert len(first) == max(4, len(due))
    assert set(first.values()) == {4}
    taken = dict(first)
    while not step.done:
        for prompt, rollouts in step.take(None):
            assert prompt not in taken
            taken[prompt] = rollouts
        for prompt, rollouts in list(first.items()):
            step.observe(prompt, [0] * rollouts)
        first = {}
        for prompt, rollouts in step.take(None):
            assert prompt not in taken
            taken[prompt] = first[prompt] = rollouts
    assert taken == dict.fromkeys(ids, 4)


@given(st.sampled_from(["static", "online"]), st.integers(2, 4), st.integers(0, 2**32), st.sampled_from([0, 6]))
@settings(max_examples=80)
def test_only_candidates_that_are_not_due_may_be_left_out(mode, lower, seed, target):
    rng = np.random.default_rng(seed)
    rates = population(rng, 30)
    target = target if mode == "online" else 0
    planner = KnapsackPlanner(mode, 80, lower, 30, candidates=3, target_groups=target)
    due = rng.random(30) < 0.2
    for _ in range(3):
        step = planner.begin(list(rates), due=due)
        drive(step, rates, rng, room=25)
        budgets = step.allocation().budgets
        assert ((budgets == 0) | (budgets >= lower)).all()
        assert (budgets[due] >= lower).all()
        assert budgets.sum() <= 80
        if target:
            assert budgets.sum() == 80 or step.mixed >= target
        else:
            assert budgets.sum() == 80
        np.testing.assert_array_equal(step.allocation().weights > 0, budgets > 0)


def test_a_step_ends_when_enough_groups_are_mixed():
    rng = np.random.default_rng(3)
    rates = {f"p{i}": float(p) for i, p in enumerate(rng.uniform(0.2, 0.8, 60))}
    spent = {}
    for target in (5, 20):
        planner = KnapsackPlanner(
            "online", 400, candidates=3, target_groups=target, marginal="target_size", in_flight=16
        )
        step = planner.begin(list(rates))
        drive(step, rates, np.random.default_rng(4), room=16)
        assert target <= step.mixed <= target + 8
        spent[target] = step.allocation().budgets.sum()
    assert spent[5] < spent[20] < 400


def test_admission_without_labels_is_the_concave_envelope():
    planner = KnapsackPlanner("static", 60, 2, 128, candidates=3)
    planner.beliefs.fit_prior = False
    ids = [f"p{i}" for i in range(40)]
    for i, prompt in enumerate(ids):
        planner.observe(prompt, np.arange(20) < i % 21)
    planner.beliefs.discounts = (1.0, 1.0)
    plan = planner.plan(ids)
    value = BetaValue(*planner.beliefs.posterior(ids))
    want = solve(value, 60, 0, 128)
    assert value.total(plan.budgets).sum() >= value.total(want).sum() * (1 - 1e-9)


def test_two_steps_may_be_open_at_once():
    """As when generation goes on while the learner updates: labels go to their own step, and one can be taken back."""
    rates = population(np.random.default_rng(0), 20)
    ids = list(rates)
    planner, alone = (KnapsackPlanner("online", 80) for _ in range(2))
    first, second = planner.begin(ids[:10]), planner.begin(ids[10:])
    for prompt, rollouts in first.take(20):
        first.observe(prompt, [1] * rollouts)
    drive(second, rates, np.random.default_rng(1))
    first.withdraw()
    only = alone.begin(ids[10:])
    drive(only, rates, np.random.default_rng(1))
    assert second.allocation().budgets.tolist() == only.allocation().budgets.tolist()
    assert planner.beliefs.visits(ids).tolist() == [0] * 10 + [1] * 10
