"""Beliefs: effects of labels, visits and the population."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.planner import Beliefs
from kray.planner.beliefs import PRIOR_PROMPTS
from kray.planner.metrics import CalibrationTally, calibration
from kray.planner.priors import fit_beta_binomial, fit_persistence


def test_old_labels_are_discounted_once_per_visit():
    beliefs = Beliefs(discount=0.5)
    beliefs.begin_visit(["a", "b"])
    beliefs.observe("a", [1, 0, 0, 1])
    beliefs.observe("a", 1.0)
    assert [x.tolist() for x in beliefs.posterior(["a", "b", "c"])] == [[4, 1, 1], [3, 1, 1]]
    beliefs.begin_visit(["a"])
    assert [x.tolist() for x in beliefs.posterior(["a"])] == [[2.5], [2]]
    beliefs.observe("a", [0, 0])
    assert [x.tolist() for x in beliefs.posterior(["a"])] == [[2.5], [4]]
    assert beliefs.visits(["a", "b", "c"]).tolist() == [2, 0, 0]
    assert beliefs.known(["a", "b", "c"]).tolist() == [True, True, False]  # asking about c does not make it known


def test_a_prompt_that_is_passed_over_is_not_visited():
    beliefs = Beliefs(discount=0.5)
    for rewards in ([1, 0, 1, 1], [1, 1, 0, 0]):
        beliefs.begin_visit(["a"])
        beliefs.observe("a", rewards)
    beliefs.begin_visit(["a"])
    offered = [x.tolist() for x in beliefs.posterior(["a"])]
    for _ in range(6):
        beliefs.begin_visit(["a"])
    assert [x.tolist() for x in beliefs.posterior(["a"])] == offered == [[1 + 1.75], [1 + 1.25]]
    assert beliefs.visits(["a"]).tolist() == [2]
    beliefs.observe("a", [0])
    assert [x.tolist() for x in beliefs.posterior(["a"])] == [[1 + 1.75], [2 + 1.25]]


def test_passed_over_prompts_predict_as_well_as_visited_ones():
    rng = np.random.default_rng(9)
    one, other = Beliefs(fit_discount=True), Beliefs(fit_discount=True)
    ids = [f"p{i}" for i in range(200)]
    rates = rng.random(200)
    for _ in range(3):
        labels = [rng.binomial(1, p, 6) for p in rates]
        for beliefs in (one, other):
            beliefs.refit_prior()
            beliefs.begin_visit(ids)
            for prompt, rewards in zip(ids, labels, strict=True):
                beliefs.observe(prompt, rewards)
    other.begin_visit(ids[:150])
    assert one.refit_prior()
    assert other.refit_prior()
    assert other.discounts == one.discounts


def test_the_last_visit_is_raw_and_stays_until_the_next_label():
    beliefs = Beliefs()
    beliefs.begin_visit(["a"])
    beliefs.observe("a", [1, 0, 1])
    beliefs.begin_visit(["a"])
    successes, trials = beliefs.last_visit(["a", "never"])
    assert successes[0] == 2
    assert np.isnan(successes[1])
    assert trials.tolist() == [3, 0]
    beliefs.observe("a", [0])
    assert [x.tolist() for x in beliefs.last_visit(["a"])] == [[0], [1]]


def test_graded_rewards_count_in_part():
    beliefs = Beliefs()
    beliefs.observe("a", [0.25, 0.5])
    assert [x.tolist() for x in beliefs.posterior(["a"])] == [[1.75], [2.25]]


@pytest.mark.parametrize("bad", [[0.5, np.nan], [-0.1], [1.2], [[1, 0]], np.inf])
def test_bad_rewards_are_named_and_change_nothing(bad):
    beliefs = Beliefs()
    with pytest.raises(ValueError, match="rewards of prompt a"):
        beliefs.observe("a", bad)
    assert [x.tolist() for x in beliefs.posterior(["a"])] == [[1], [1]]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("discount", {"discount": 1.5}), ("prior_alpha", {"prior_alpha": 0}), ("prior_beta", {"prior_beta": np.nan})],
)
def test_bad_settings_are_named(name, arguments):
    with pytest.raises(ValueError, match=name):
        Beliefs(**arguments)


def test_a_prompt_begins_a_visit_once():
    with pytest.raises(ValueError, match="prompt_ids"):
        Beliefs().begin_visit(["a", "a"])


events = st.lists(
    st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.lists(st.floats(0, 1), max_size=4))), max_size=30
)


@given(events, events, st.floats(0, 1), st.booleans())
@settings(max_examples=100)
def test_saved_beliefs_continue_exactly(before, after, discount, fit_discount):
    def live(beliefs, events):
        for prompt, rewards in events:
            if rewards is None:
                beliefs.begin_visit([prompt])
            else:
                beliefs.observe(prompt, rewards)

    one = Beliefs(discount, 0.1, 0.7, True, fit_discount)
    live(one, before)
    other = Beliefs.from_dict(json.loads(json.dumps(one.to_dict())))
    assert other.to_dict() == one.to_dict()
    live(one, after)
    live(other, after)
    assert other.to_dict() == one.to_dict()


def test_beliefs_of_another_version_or_damaged_are_refused():
    beliefs = Beliefs()
    beliefs.observe("a", [1])
    with pytest.raises(ValueError, match="version"):
        Beliefs.from_dict({**beliefs.to_dict(), "version": 9})
    with pytest.raises(ValueError, match="successes"):
        Beliefs.from_dict({**beliefs.to_dict(), "successes": []})


def test_many_prompts_grow_the_arrays():
    beliefs = Beliefs()
    ids = [f"p{i}" for i in range(30_000)]
    for at in range(0, len(ids), 700):
        beliefs.begin_visit(ids[at : at + 700])
    beliefs.observe(ids[-1], [1, 1])
    alpha, beta = beliefs.posterior(ids)
    assert alpha[-1] == 3
    assert (alpha[:-1] == 1).all()
    assert (beta == 1).all()
    assert len(beliefs) == 30_000


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.3, 0.9), (2.0, 5.0), (0.1, 0.1)])
def test_empirical_bayes_recovers_the_population(a, b):
    rng = np.random.default_rng(3)
    trials = rng.integers(2, 33, 20_000)
    fitted = fit_beta_binomial(rng.binomial(trials, rng.beta(a, b, 20_000)), trials)
    assert fitted == pytest.approx((a, b), rel=0.06)


@pytest.mark.parametrize(("a", "b", "r", "t"), [(0.4, 0.9, 0.9, 0.3), (0.3, 0.6, 0.2, 0.8)])
def test_fit_persistence_recovers_the_discounts(a, b, r, t):
    rng = np.random.default_rng(4)
    known = rng.integers(0, 9, (2, 4096)) * (rng.random(4096) < 0.8)  # a fifth was never visited before
    trials = rng.integers(2, 33, 4096)
    passed = rng.binomial(trials, rng.beta(a + r * known[0], b + t * known[1]))
    found = fit_persistence(known[0], known[1], passed, trials)
    assert found[:2] == pytest.approx((a, b), rel=0.15)
    assert found[2:] == pytest.approx((r, t), abs=0.1)


def test_beliefs_learn_a_discount_of_failures():
    rng = np.random.default_rng(6)
    beliefs, fixed = Beliefs(fit_discount=True), Beliefs()
    ids = [f"p{i}" for i in range(500)]
    log_odds = rng.normal(-2, 2, 500)
    scores = {}
    for visit in range(6):
        rates = 1 / (1 + np.exp(-log_odds))
        labels = [rng.binomial(1, p, 8) for p in rates]
        for each in (beliefs, fixed):
            each.refit_prior()
            each.begin_visit(ids)
            alpha, beta = each.posterior(ids)
            scores[each, visit] = float(np.mean((alpha / (alpha + beta) - rates) ** 2))
            for prompt_id, rewards in zip(ids, labels, strict=True):
                each.observe(prompt_id, rewards)
        log_odds = log_odds + 1.0  # everything is learned alike
    assert beliefs.discounts[0] > beliefs.discounts[1] + 0.1
    assert fixed.discounts == (0.5, 0.5)
    assert scores[beliefs, 5] < 0.9 * scores[fixed, 5]


def test_beliefs_do_not_depend_on_the_order_of_labels():
    """To the last bit, over many visits: fitting discounts would make more of a bit."""
    rng = np.random.default_rng(8)
    beliefs, other = Beliefs(fit_discount=True), Beliefs(fit_discount=True)
    ids = [f"p{i}" for i in range(60)]
    rates = rng.random(60)
    for _ in range(12):
        rates = np.where(rng.random(60) < 0.4, rng.random(60), rates)  # so that labels go stale, but not at once
        labels = [(prompt, list(rng.binomial(1, p, 9))) for prompt, p in zip(ids, rates, strict=True)]
        for each in (beliefs, other):
            each.refit_prior()
            each.begin_visit(ids)
        for prompt, rewards in labels:
            beliefs.observe(prompt, rewards)
        for prompt, rewards in reversed(labels):
            for reward in reversed(rewards):
                other.observe(prompt, reward)
    assert all(0.1 < discount < 0.9 for discount in beliefs.discounts)
    assert other.to_dict() == beliefs.to_dict()


def test_states_without_fitted_discounts_load():
    beliefs = Beliefs(0.25)
    beliefs.observe("a", [1, 0])
    state = beliefs.to_dict()
    for key in ("discounts", "fit_discount", "prior_successes", "prior_failures"):
        del state[key]
    old = Beliefs.from_dict(state | {"version": 2, "discount": 0.25})
    assert old.to_dict() == beliefs.to_dict()


def test_states_of_version_3_are_not_discounted_twice():
    beliefs = Beliefs(0.25)
    beliefs.begin_visit(["a"])
    beliefs.observe("a", [1, 0])
    beliefs.begin_visit(["a"])
    old = Beliefs.from_dict(beliefs.to_dict() | {"version": 3, "prior_successes": [1.0], "successes": [0.25]})
    assert [x.tolist() for x in old.posterior(["a"])] == [[1.25], [2.0]]
    assert old.last_visit(["a"])[1].tolist() == [0.0]  # they foretell nothing until there are new ones


def test_the_prior_is_fitted_from_the_latest_visits():
    rng = np.random.default_rng(5)
    beliefs = Beliefs()
    for i, p in enumerate(rng.beta(0.4, 1.2, 4000)):
        beliefs.observe(f"p{i}", rng.binomial(1, p, 8))
    assert beliefs.refit_prior()
    assert (beliefs.prior_alpha, beliefs.prior_beta) == pytest.approx((0.4, 1.2), rel=0.15)
    assert not beliefs.refit_prior()  # nothing new
    assert beliefs.posterior(["unseen"])[0][0] == beliefs.prior_alpha


def test_few_prompts_or_a_fixed_prior_fit_nothing():
    for beliefs, prompts in ((Beliefs(), PRIOR_PROMPTS - 1), (Beliefs(fit_prior=False), 100)):
        for i in range(prompts):
            beliefs.observe(f"p{i}", [0, 0])
        assert not beliefs.refit_prior()
        assert beliefs.prior_beta == 1


@pytest.mark.parametrize("rewards", [[0, 0], [1, 1], [0, 1], [0.5], [0.33, 0.9]])
def test_one_sided_populations_keep_the_prior_in_bounds(rewards):
    beliefs = Beliefs()
    for i in range(50):
        beliefs.observe(f"p{i}", rewards)
    beliefs.refit_prior()
    assert 0.0199 <= beliefs.prior_alpha <= 50.1
    assert 0.0199 <= beliefs.prior_beta <= 50.1


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_labels_outweigh_the_prior_of_a_one_sided_population(reward):
    beliefs = Beliefs()
    for i in range(400):
        beliefs.observe(f"p{i}", [reward] * 8)
    assert beliefs.refit_prior()
    alpha, beta = beliefs.posterior(["new"])
    mean = float(alpha[0] / (alpha[0] + beta[0]))
    assert 1e-4 < (mean if reward == 0 else 1 - mean) < 0.05
    for i in range(20):
        beliefs.observe(f"q{i}", [1 - reward] * 8)
    assert beliefs.refit_prior()
    again = [float(x[0]) for x in beliefs.posterior(["new"])]
    assert 0.03 < abs(again[0] / sum(again) - reward) < 0.1


def test_a_label_with_enough_prompts_has_its_own_prior():
    rng = np.random.default_rng(0)
    beliefs = Beliefs()
    ids = [f"p{i}" for i in range(600)]
    labels = ["easy" if i % 2 else "hard" for i in range(590)] + ["rare"] * 10
    beliefs.begin_visit(ids, labels)
    for prompt, label in zip(ids, labels, strict=True):
        beliefs.observe(prompt, rng.binomial(1, {"easy": 0.9, "hard": 0.1, "rare": 0.5}[label], 8))
    assert beliefs.refit_prior()
    assert sorted(beliefs.priors()) == ["", "easy", "hard"]
    before = beliefs.snapshot(["new easy", "new rare", "p0"])
    beliefs.begin_visit(["new easy", "new rare"], ["easy", "rare"])
    alpha, beta = beliefs.posterior(["new easy", "new rare", "unknown"])
    rates = (alpha / (alpha + beta)).tolist()
    assert rates[0] == pytest.approx(0.9, abs=0.03)
    assert rates[1] == rates[2] == pytest.approx(0.5, abs=0.05)
    restored = Beliefs.from_dict(json.loads(json.dumps(beliefs.to_dict())))
    assert restored.to_dict() == beliefs.to_dict()
    assert restored.priors() == beliefs.priors()
    beliefs.restore(before)
    with pytest.raises(ValueError, match="labels"):
        beliefs.begin_visit(["a"], [])


def test_calibration_adds_up_over_steps():
    rng = np.random.default_rng(1)
    p, n = rng.random((3, 50)), rng.integers(0, 9, (3, 50))
    s = rng.binomial(n, p)
    tally, other = CalibrationTally(), CalibrationTally()
    for row in range(3):
        tally.add(p[row], s[row], n[row])
        other.load_dict(json.loads(json.dumps(tally.to_dict())))
    want = calibration(p.ravel(), s.ravel(), n.ravel())
    for one in (tally, other):
        found = one.metrics()
        assert found["planner/epoch_brier"] == pytest.approx(want["brier"])
        assert found["planner/observed_3"] == pytest.approx(want["observed"][3])
    tally.clear()
    assert np.isnan(tally.metrics()["planner/epoch_brier"])
    tally.add([0.55], [1], [1])
    # empty bins have no rate, so that no step reports them as not finite
    assert {name for name in tally.metrics() if "observed" in name} == {"planner/observed_5"}


def test_calibration():
    found = calibration([0.05, 0.05, 0.95, np.nan, 1.0], [0, 1, 3, 5, 0], [10, 10, 4, 5, 0])
    errors = 1 * 0.95**2 + 19 * 0.05**2 + 3 * 0.05**2 + 1 * 0.95**2
    assert found["brier"] == pytest.approx(errors / 24)
    assert found["trials"].tolist() == [20, 0, 0, 0, 0, 0, 0, 0, 0, 4]
    assert found["observed"][0] == pytest.approx(0.05)
    assert found["predicted"][9] == pytest.approx(0.95)
    assert np.isnan(found["observed"][1])
    assert np.isnan(calibration([], [], [])["brier"])
    with pytest.raises(ValueError, match="successes"):
        calibration([0.1], [1, 2], [1, 2])
