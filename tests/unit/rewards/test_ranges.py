"""Rewards lie in [0, 1]: values are mapped from a declared range, and what is no reward is a data failure that says so."""

from __future__ import annotations

import asyncio
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kray.config import KrayConfig, RewardConfig, check
from kray.driver.workers import make_scorer
from kray.errors import ConfigError
from kray.launch.preflight import check_prompts
from kray.records import Prompt
from kray.reward_settings import FUNCTIONS, JUDGE, JudgeConfig, read_range, reward_functions
from kray.rewards.composed import combine
from kray.rewards.outcome import Outcome, Ranges, position
from kray.rewards.reward import Reward, as_reward

FINITE = st.floats(allow_nan=False, allow_infinity=False)
RANGED = RewardConfig("sample_verifiers:two_points", range=[-1.0, 1.0])


@given(FINITE, FINITE, FINITE)
def test_a_value_is_a_reward_exactly_within_its_range(value, low, high):
    assume(low < high and math.isfinite(high - low))
    found = Ranges("mine:judge", (low, high)).apply("", Outcome(value, "why", elapsed_s=1.0))
    if low <= value <= high:
        assert 0 <= found.reward <= 1
        assert found.detail == "why"
    if found.reward is None:
        assert not low <= value <= high
        assert f'verifier "mine:judge" returned {value:g}' in found.error
        assert "reward.range: [lowest, highest]" in found.error
        assert found.elapsed_s == 1.0


@given(st.floats(0, 1))
def test_rewards_are_not_changed_where_no_range_is_declared(value):
    outcome = Outcome(value)
    assert Ranges("exact").apply("", outcome) is outcome
    assert Ranges("mine:judge", (-5.0, 5.0)).apply("exact", outcome) is outcome


def test_ends_are_rewards_and_sums_of_floats_reach_them():
    assert position(-1.0, -1.0, 3.0) == 0.0
    assert position(3.0, -1.0, 3.0) == 1.0
    assert position(1.0000000000000002, 0.0, 1.0) == 1.0
    assert position(-1e-17, 0.0, 1.0) == 0.0
    assert position(1.001, 0.0, 1.0) is None
    assert position(float("nan"), 0.0, 1.0) is None


def test_what_has_no_value_is_left_alone():
    ranges = Ranges("mine:judge", (1.0, 2.0))
    for outcome in (Outcome(0.0, "timeout after 1 s", timed_out=True), Outcome(None, error="no")):
        assert ranges.apply("", outcome) is outcome
    assert ranges.apply_all(["functions.a"], [Outcome(7.0)], {"functions.a": ()}) == [Outcome(7.0)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1", "verifier \"v\" returned '1' (str), not a number"),
        ("\ud800\n", "verifier \"v\" returned '\\ud800\\n' (str), not a number"),
        (None, 'verifier "v" returned None (NoneType), not a number'),
        ([1.0], 'verifier "v" returned [1.0] (list), not a number'),
        (1j, 'verifier "v" returned 1j (complex), not a number'),
        (Decimal("0.5"), "not a number"),
        (np.array([1.0, 2.0]), "not a number"),
        (np.array(["1"]), "not a number"),
        (Reward("x"), "verifier \"v\" returned 'x' (str), not a number"),
        (math.nan, 'verifier "v" returned nan, not a finite number'),
        (Reward(-math.inf), 'verifier "v" returned -inf, not a finite number'),
        (10**400, "not a finite number"),
        (np.float32("inf"), "not a finite number"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_number_is_named(value, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        as_reward(value, "v")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("value", "reward"),
    [(True, 1.0), (np.bool_(False), 0.0), (1, 1.0), (Fraction(1, 2), 0.5), (np.array([0.25]), 0.25)],
)
def test_other_numbers_are_rewards(value, reward):
    assert as_reward(value, "v") == Reward(reward)


def scored(reward: RewardConfig, *items):
    async def run():
        scorer = make_scorer(reward, ["exact"])
        try:
            return await scorer.score(items), scorer
        finally:
            scorer.close()

    return asyncio.run(run())


def test_a_verifier_without_a_range_gives_rewards_or_data_failures():
    items = [("", digit, "") for digit in "0123579"] + [("exact", "1", "1")]
    outcomes, scorer = scored(RewardConfig("sample_verifiers:no_reward"), *items)
    assert [outcome.reward for outcome in outcomes] == [1.0, None, 1.0, None, None, None, None, 1.0]
    assert outcomes[1].error == (
        'verifier "sample_verifiers:no_reward" returned 1e+308, which is not in [0, 1]; if it is right, declare which values '
        "stand for 0 and 1: reward.range: [lowest, highest]"
    )
    assert "returned nan, not a finite number" in outcomes[4].error
    assert scorer.failures == 5


def test_a_declared_range_is_that_of_the_runs_verifier_alone():
    name = RANGED.verifier
    outcomes, _ = scored(RANGED, ("", "0", ""), (name, "1", ""), ("exact", "1", "1"), ("exact", "0", "1"))
    assert [outcome.reward for outcome in outcomes] == [1.0, 0.0, 1.0, 0.0]
    (other,), _ = scored(RewardConfig("exact"), (name, "1", ""))
    assert other.reward is None
    assert "as a function of reward.functions with a range" in other.error


POINTS, DECLARED = "sample_verifiers:points", "sample_verifiers:two_points_declared"


def test_a_verifier_declares_its_own_range():
    outcomes, scorer = scored(RewardConfig(POINTS), ("", "0", ""), ("", "1", ""), ("", "9", ""), (DECLARED, "1", ""))
    assert [outcome.reward for outcome in outcomes] == [1.0, 0.0, None, 0.0]
    assert outcomes[2].error == (
        f'verifier "{POINTS}" returned 100, which is not in [0, 20], the reward_range that it declares'
    )
    assert scorer.failures == 1


def test_a_range_of_the_configuration_must_agree_with_a_declared_one():
    (same,), _ = scored(RewardConfig(DECLARED, range=[-1.0, 1.0]), ("", "1", ""))
    assert same.reward == 0.0
    (other,), _ = scored(RewardConfig(DECLARED, range=[0.0, 5.0]), ("", "0", ""))
    wrong = (
        f'reward.range is [0, 5], but verifier "{DECLARED}" declares the reward_range [-1, 1]: leave reward.range out'
    )
    assert (other.reward, other.error) == (None, wrong)
    with pytest.raises(ConfigError) as caught:
        check_prompts(KrayConfig(reward=RewardConfig(DECLARED, range=[0.0, 5.0])), [prompt(DECLARED)], [])
    assert str(caught.value) == wrong
    with pytest.raises(ConfigError, match=r"no_range.: its reward_range must be two numbers of which the second"):
        check_prompts(
            KrayConfig(reward=RewardConfig("sample_verifiers:no_range")), [prompt("sample_verifiers:no_range")], []
        )


def prompt(verifier: str) -> Prompt:
    return Prompt("p", "1", verifier, "train", text="1 =")


def test_functions_with_declared_ranges_are_combined():
    reward = RewardConfig(
        FUNCTIONS, functions={"points": {"verifier": POINTS, "weight": 3}, "sign": {"verifier": DECLARED}}
    )
    outcomes, _ = scored(reward, (FUNCTIONS, "0", ""), (FUNCTIONS, "1", ""), (FUNCTIONS, "9", ""))
    assert [outcome.reward for outcome in outcomes] == [1.0, 0.0, None]
    assert outcomes[2].error == "reward.functions.points: 100 is not in [0, 20]; the reward_range that it declares"
    # The configuration says which of them count as 0 and 1.
    narrow = RewardConfig(FUNCTIONS, functions={"points": {"verifier": POINTS, "range": [0, 10]}})
    outcomes, _ = scored(narrow, (FUNCTIONS, "0", ""), (FUNCTIONS, "1", ""), (FUNCTIONS, "9", ""))
    assert [outcome.reward for outcome in outcomes] == [1.0, 0.0, None]


def test_values_of_functions_that_are_no_rewards_are_named_or_held():
    plain, ranged = reward_functions({"exact": 1}), reward_functions({"exact": {"range": [0, 2]}})
    assert "reward.functions.exact: 1e+308 is not in [0, 1]" in combine(plain, {"exact": Outcome(1e308)}).error
    assert combine(ranged, {"exact": Outcome(1e308)}).reward == 1.0
    assert combine(ranged, {"exact": Outcome(-1e308)}).reward == 0.0
    assert combine(plain, {"exact": Outcome(1.0000000000000002)}).reward == 1.0


@pytest.mark.parametrize(
    "ends",
    [[0], [1, 0], [1, 1], [0, math.inf], [0, math.nan], [-1e308, 1e308], [False, True], ["0", "1"], [0, 10**400], 3],
    ids=lambda ends: str(ends)[:30],
)
def test_ranges_that_are_none_are_refused_by_their_key(ends):
    with pytest.raises(ValueError, match=r"reward\.range must be two numbers of which the second is larger"):
        read_range(ends, "reward.range")
    if isinstance(ends, list) and all(isinstance(end, float) for end in ends):
        assert any(
            text.startswith("reward.range must be") for text in check(KrayConfig(reward=RewardConfig(range=ends)))
        )


def test_a_range_goes_with_one_function():
    functions = RewardConfig(FUNCTIONS, range=[0.0, 2.0], functions={"exact": 1})
    judge = RewardConfig(JUDGE, range=[0.0, 2.0], judge=JudgeConfig(url="http://x/v1", model="m"))
    for reward in (functions, judge):
        assert any("reward.range belongs to one verifier" in text for text in check(KrayConfig(reward=reward)))
    assert not [text for text in check(KrayConfig(reward=RANGED)) if text.startswith("reward")]


def test_an_integer_of_any_length_is_named():
    with pytest.raises(ValueError, match="not a finite number"):
        as_reward(10**5000, "v")
