"""Several reward functions with weights."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kray.config import KrayConfig, RewardConfig, check
from kray.driver.workers import make_scorer
from kray.records import Prompt
from kray.reward_settings import RewardFunction, reward_functions
from kray.rewards import Outcome, Sample
from kray.rewards.composed import combine

UNITS = st.floats(0, 1)
WEIGHTS = st.floats(-4, 4).filter(lambda weight: weight == 0 or abs(weight) > 1e-3)


def functions_of(weights) -> dict[str, RewardFunction]:
    return {f"f{i}": RewardFunction("exact", weight) for i, weight in enumerate(weights)}


def outcomes_of(values) -> dict[str, Outcome]:
    return {
        f"f{i}": Outcome(None, error="no", skipped=True) if value is None else Outcome(value)
        for i, value in enumerate(values)
    }


@given(st.lists(st.tuples(WEIGHTS, st.none() | UNITS), min_size=1, max_size=6))
def test_the_reward_lies_in_0_to_1_or_no_function_applies(pairs):
    found = combine(functions_of(weight for weight, _ in pairs), outcomes_of(value for _, value in pairs))
    if any(weight and value is not None for weight, value in pairs):
        assert 0 <= found.reward <= 1
        assert found.parts == {f"f{i}": value for i, (_, value) in enumerate(pairs) if value is not None}
    else:
        assert found.reward is None
        assert "applies to this prompt" in found.error


@given(st.lists(st.tuples(WEIGHTS, UNITS, UNITS), min_size=1, max_size=6))
def test_rewards_differ_as_weighted_sums_do(triples):
    """Up to a positive factor and a constant, the reward is the sum of weight x value."""
    weights = [weight for weight, _, _ in triples]
    assume(any(weights))
    first, second = (
        combine(functions_of(weights), outcomes_of(triple[which] for triple in triples)).reward for which in (1, 2)
    )
    sums = [sum(triple[0] * triple[which] for triple in triples) for which in (1, 2)]
    assert first - second == pytest.approx((sums[0] - sums[1]) / sum(map(abs, weights)), abs=1e-9)


@given(st.lists(st.tuples(WEIGHTS, UNITS), min_size=2, max_size=6), st.integers(0, 5))
def test_a_function_that_does_not_apply_counts_as_if_it_were_not_there(pairs, left_out):
    left_out %= len(pairs)
    values = [None if i == left_out else value for i, (_, value) in enumerate(pairs)]
    weights = [weight for weight, _ in pairs]
    found = combine(functions_of(weights), outcomes_of(values))
    kept = {f"f{i}": RewardFunction("exact", w) for i, w in enumerate(weights) if i != left_out}
    alone = combine(kept, {name: Outcome(pairs[int(name[1:])][1]) for name in kept})
    assert found.reward == alone.reward


def test_ranges_map_values_and_hold_them():
    functions = reward_functions({"exact": {"range": [-1, 3]}, "math": {"weight": -1, "range": [0, 200]}})

    def earned(value: float, tokens: float) -> float:
        return combine(functions, {"exact": Outcome(value), "math": Outcome(tokens)}).reward

    assert earned(3, 0) == earned(9, -5) == 1.0
    assert earned(-1, 200) == earned(-7, 900) == 0.0
    assert earned(1, 50) == (0.5 + 0.75) / 2


def test_a_value_outside_of_0_to_1_needs_a_range():
    found = combine(reward_functions({"exact": 1}), {"exact": Outcome(2.0)})
    assert found.reward is None
    assert (
        found.error
        == "reward.functions.exact: 2 is not in [0, 1]; say which values it gives: reward.functions.exact.range"
    )


def test_a_failure_names_its_function_and_a_timeout_earns_nothing():
    functions = reward_functions({"exact": 1, "math": -1})
    failed = combine(functions, {"exact": Outcome(1.0), "math": Outcome(None, error="ValueError: no")})
    assert (failed.reward, failed.error) == (None, "reward.functions.math: ValueError: no")
    late = combine(functions, {"exact": Outcome(1.0), "math": Outcome(0.0, "timeout after 2 s", timed_out=True)})
    assert (late.reward, late.detail, late.timed_out) == (0.0, "timeout after 2 s in math", True)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"mth": 1}, "reward.functions.mth.verifier must be one of math, exact,"),
        (
            {"a": {"verifer": "exact"}},
            "reward.functions.a.verifer is not a key; there are: verifier, weight, options, range",
        ),
        ({"exact": "much"}, "reward.functions.exact.weight must be a finite number, not 'much'"),
        ({"exact": float("nan")}, "reward.functions.exact.weight must be a finite number, not nan"),
        ({"exact": 0}, "reward.functions: every weight is 0"),
        (
            {"exact": {"range": [1, 1]}},
            "reward.functions.exact.range must be two numbers of which the second is larger",
        ),
        ({"exact": {"options": 3}}, "reward.functions.exact.options must be a mapping, not 3"),
        ({"a/b": {"verifier": "exact"}}, "reward.functions.a/b: a name has letters, digits, - and _"),
        ({"functions": 1}, "reward.functions.functions.verifier must be one of"),
        ({"judge": 1}, "reward.judge.url must be the http:// or https:// address"),
    ],
)
def test_wrong_functions_are_refused_by_their_key(functions, message):
    found = check(KrayConfig(reward=RewardConfig("functions", functions=functions)))
    assert any(text.startswith(message) for text in found), found


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (RewardConfig("functions"), "reward.verifier is functions, and reward.functions names none"),
        (
            RewardConfig("exact", functions={"math": 1}),
            "reward.functions are given, and reward.verifier is 'exact': set",
        ),
        (RewardConfig("functions", {"after": "="}, functions={"math": 1}), "reward.options belong to one verifier"),
    ],
)
def test_functions_and_verifier_go_together(reward, message):
    assert any(text.startswith(message) for text in check(KrayConfig(reward=reward)))
    config = KrayConfig(reward=RewardConfig("exact", functions={"math": 1}))
    config.prompts.train.verifier = "functions"
    assert not [text for text in check(config) if text.startswith("reward")]


def scored(reward: RewardConfig, items):
    async def run():
        scorer = make_scorer(reward, ["exact"])
        try:
            return await scorer.score(items), scorer
        finally:
            scorer.close()

    return asyncio.run(run())


def item(response: str, verifier: str = "functions", **columns):
    prompt = Prompt("p:1", "42", verifier, "p", text="6*7=", columns=columns)
    return (verifier, response, prompt.answer if verifier == "exact" else Sample(prompt, (1, 2, 3)))


def test_functions_of_several_signatures_are_called_in_processes():
    functions = {
        "solved": {"verifier": "sample_rewards:trl_two_points", "weight": 2, "range": [0, 2]},
        "even": {"verifier": "sample_verifiers:first_is_even", "weight": 1},
        "tokens": {"verifier": "sample_rewards:trl_length", "weight": -1, "range": [0, 6]},
        "level": {"verifier": "sample_rewards:trl_level", "weight": 4},
        "any": {"verifier": "exact", "weight": 0, "options": {"after": "#"}},
    }
    items = [item("42", solution="42", level="easy"), item("42", "exact"), item("13", solution="42", level="hard")]
    (weighted, exact, other), scorer = scored(RewardConfig("functions", functions=functions, workers=2), items)
    assert weighted.reward == pytest.approx((2 * 1 + 1 * 1 + 1 * 0.5) / 4)
    assert weighted.parts == {"solved": 2.0, "even": 1.0, "tokens": 3.0, "any": 0.0}
    assert weighted.detail.startswith("solved 2, even 1, tokens 3, any 0; any: no '#'")
    assert (exact.reward, exact.parts) == (1.0, {})
    assert other.reward == pytest.approx((0.5 + 4 * 1) / 8)
    assert (scorer.failures, scorer.timeouts) == (0, 0)


def test_one_broken_function_costs_its_responses_only():
    functions = {
        "broken": {"verifier": "sample_rewards:trl_broken"},
        "exact": 1,
    }
    items = [item("42"), item("42", "exact")]
    (broken, exact), scorer = scored(RewardConfig("functions", functions=functions), items)
    assert broken.reward is None
    assert broken.error.startswith("reward.functions.broken: RuntimeError: no reward today (sample_rewards.py:")
    assert exact.reward == 1.0
    assert scorer.failures == 1
