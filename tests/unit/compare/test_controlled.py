"""Controls of a method: a plan that knows success rates, budgets for random prompts, rewards with noise."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kray.compare.controlled import ControlledPlanner, NoisyCollector, flips, known_beliefs
from kray.compare.controls import Controls, check_controls
from kray.compare.method_run import silence_equal_groups, tell_baseline
from kray.config import KrayConfig
from kray.config.train_schema import TrainConfig
from kray.errors import ConfigError
from kray.plan_modes import PlanConfig
from kray.planner import KnapsackPlanner, PointValue, solve
from kray.records import Allocation, Prompt, Rollout, RolloutGroup, derive_seed
from kray.rewards.scorer import Outcome
from kray.rollout.collected import CollectedStep
from kray.rollout.collector import EVALUATION, TRAINING, Collector, Draw
from kray.train.advantages import belief_advantages

RATES = np.array([0.0, 0.01, 0.3, 0.6, 1.0])


def planner(controls: Controls, seed: int = 0, **keys) -> ControlledPlanner:
    plan = PlanConfig(**{"mode": "static", "budget": 40, "lower": 2, "upper": 16, "candidates": 1.0, "refit_every": 1,
                         "fit_discount": False} | keys)  # fmt: skip
    config = KrayConfig(plan=plan)
    config.run.seed = seed
    return ControlledPlanner.under(controls, config)


def budgets(of: KnapsackPlanner, ids: str = "01234", due=None) -> np.ndarray:
    step = of.begin(list(ids), due=due)
    for prompt_id, rollouts in step.take():
        # what the prompts' labels are decides what is believed of them at the next step
        successes = rollouts * (int(prompt_id, 36) % 5) // 4
        step.observe(prompt_id, [1.0] * successes + [0.0] * (rollouts - successes))
    assert step.done
    allocation = step.allocation()
    found = dict(zip(allocation.prompt_ids, allocation.budgets.tolist(), strict=True))
    return np.array([found.get(prompt_id, 0) for prompt_id in ids])


def test_the_oracle_solves_the_knapsack_on_the_rates_it_is_told():
    oracle = planner(Controls("plan"))
    oracle.rates = {str(i): p for i, p in enumerate(RATES)}
    for _ in range(2):  # labels of the first step change nothing
        assert budgets(oracle).tolist() == solve(PointValue(RATES), 40, 2, 16).tolist()


def test_the_oracle_spends_tokens_that_come_back():
    oracle = planner(Controls("plan"), unit="tokens", token_budget=200, upper=20)
    oracle.rates = {"solved": 1.0, "half": 0.5}
    step = oracle.begin(["solved", "half"], cost=[10.0, 10.0])
    spent = 0
    while not step.done:
        for prompt_id, rollouts in step.take():
            step.observe(prompt_id, [1.0] * rollouts, tokens=6 * rollouts)  # for 10 that were expected
            spent += 6 * rollouts
    assert 190 < spent <= 200


def test_an_oracle_that_may_pass_prompts_over_chooses_as_one_that_knows_points():
    oracle = planner(Controls("both"), candidates=2.0, budget=24, lower=2, upper=8)
    oracle.rates = {str(i): p for i, p in enumerate(RATES)}
    found = budgets(oracle)
    assert found.sum() == 24
    assert found[[0, 4]].tolist() == [0, 0]  # nothing can be learned where the rate is 0 or 1
    assert found[[2, 3]].tolist() == [8, 8]
    assert oracle.beliefs.posterior(["0"], None)[0][0] < 100  # the planner's own beliefs know labels alone


@pytest.mark.parametrize(
    "keys",
    [
        {"candidates": 1.0},
        {"candidates": 2.0},
        {"lower": 4, "upper": 8},
        {"value": "baseline", "lower": 1, "candidates": 0, "budget": 16},
        {"value": "baseline", "lower": 1, "candidates": 0, "tau": 40.0},
        {"value": "baseline", "lower": 1, "candidates": 1.0},
    ],
)
def test_shuffled_budgets_have_the_same_histogram_and_go_to_others(keys):
    ids = "0123456789abcdefghijklmn"
    keys = {"candidates": 2.0, "budget": 80} | keys
    plain, shuffled = planner(Controls(), **keys), planner(Controls(shuffle_budgets=True), **keys)
    assert sorted(budgets(plain, ids)) == sorted(budgets(shuffled, ids))
    # the second step begins with the beliefs of the first; with the same beliefs
    shuffled.load_dict(plain.to_dict())
    again = planner(Controls(shuffle_budgets=True), **keys)
    again.load_dict(plain.to_dict())
    other = planner(Controls(shuffle_budgets=True), seed=1, **keys)
    other.load_dict(plain.to_dict())
    known = budgets(plain, ids)
    found, same, another = budgets(shuffled, ids), budgets(again, ids), budgets(other, ids)
    assert sorted(known) == sorted(found) == sorted(another)
    assert len(set(known.tolist())) > 1
    assert known.tolist() != found.tolist()
    assert found.tolist() == same.tolist() != another.tolist()


def test_due_prompts_keep_their_budgets_when_others_are_shuffled():
    ids = "0123456789abcdefghijklmn"
    due = np.arange(len(ids)) % 4 == 0
    plain = planner(Controls(), budget=96, candidates=2.0)
    budgets(plain, ids)
    shuffled = planner(Controls(shuffle_budgets=True), budget=96, candidates=2.0)
    shuffled.load_dict(plain.to_dict())
    known, found = budgets(plain, ids, due), budgets(shuffled, ids, due)
    assert (found[due] == known[due]).all()
    assert (found >= 2 * due).all()
    assert sorted(found[~due]) == sorted(known[~due])
    assert found.tolist() != known.tolist()


def test_an_oracle_chooses_among_all_prompts_by_what_it_knows():
    ids = [str(i) for i in range(20)]
    rates = dict(zip(ids, np.linspace(0, 1, 20), strict=True))
    keys = {"value": "baseline", "lower": 1, "upper": 4, "candidates": 0, "budget": 6}
    chosen, strengths = {}, {}
    for oracle in ("both", "plan"):
        made = planner(Controls(oracle), **keys)
        made.rates = rates
        step = made.begin(ids)
        strengths[oracle] = step._start.value.strength
        chosen[oracle] = {prompt_id for prompt_id, _ in step.take()}
    # p q^2 is largest near 1/3
    assert chosen["both"] == {"4", "5", "6", "7", "8", "9"}
    assert chosen["plan"] <= chosen["both"]
    assert (strengths["both"] > 1e5).all()
    assert (strengths["plan"] < 100).all()


def test_known_beliefs_are_certain_and_positive():
    beliefs = known_beliefs(RATES)
    assert (beliefs > 0).all()
    assert beliefs[:, 0] / beliefs.sum(axis=1) == pytest.approx(RATES, abs=1e-9)
    assert beliefs.sum(axis=1) == pytest.approx(np.full(5, 1e6))


def test_the_baseline_is_told_exact_rates():
    ids = ["a", "b", "c"]
    allocation = Allocation(ids, np.array([1, 1, 1]), np.ones(3), np.full(3, 0.5), np.ones(3), np.full((3, 2), 2.0))
    groups = [RolloutGroup(Prompt(i, "", "exact", "x", text="x"), (1,), [], 1.0, (2.0, 2.0)) for i in ("c", "a")]
    tell_baseline(CollectedStep(allocation, groups), {"a": 0.25, "b": 0.5, "c": 1.0})
    assert allocation.beliefs.tolist() == [[250_000, 750_000], [500_000, 500_000], [1e6, 1e-6]]
    assert [group.belief for group in groups] == [(1e6, 1e-6), (250_000, 750_000)]


def test_groups_with_equal_rewards_teach_nothing_under_mixed_only():
    def group(name: str, rewards: list[float]) -> RolloutGroup:
        rollouts = [
            Rollout(name, i, np.zeros(0), np.zeros(0), "stop", (), reward=reward) for i, reward in enumerate(rewards)
        ]
        return RolloutGroup(Prompt(name, "", "exact", "x", text="x"), (1,), rollouts, 1.0, (2.0, 1.0))

    groups = [group("mixed", [1.0, 0.0, 0.0]), group("solved", [1.0, 1.0]), group("alone", [0.0])]
    silence_equal_groups(CollectedStep(None, groups))
    rewards = torch.tensor([rollout.reward for each in groups for rollout in each.rollouts])
    beliefs = torch.tensor([each.belief for each in groups])
    advantages = belief_advantages(rewards, torch.tensor([0, 0, 0, 1, 1, 2]), beliefs, scale=True)
    assert advantages[:3].all()
    assert not advantages[3:].any()


def test_mixed_only_needs_the_belief_as_baseline():
    with pytest.raises(ConfigError, match=r"m: mixed_only needs train\.baseline belief, not group"):
        check_controls(Controls(mixed_only=True), KrayConfig(train=TrainConfig(baseline="group")), "m")


def test_a_comparison_does_not_colocate():
    config = KrayConfig()
    check_controls(Controls(), config, "m")
    config.rollout.colocate = True
    with pytest.raises(ConfigError, match=r"m: rollout\.colocate must be false"):
        check_controls(Controls(), config, "m")


@pytest.mark.parametrize("controls", [Controls("plan"), Controls(shuffle_budgets=True)])
def test_limits_by_kind_go_with_no_control_of_the_plan(controls):
    config = KrayConfig(plan=PlanConfig(adapt=True))
    with pytest.raises(ConfigError, match=r"m: plan\.adapt goes by the planner's own values"):
        check_controls(controls, config, "m")
    check_controls(Controls("baseline"), config, "m")


class Scorer:
    """Gives every response the reward .75."""

    async def score(self, items):
        return [Outcome(0.75) for _ in items]


def noisy(noise: float) -> NoisyCollector:
    pool = SimpleNamespace(task_ids=iter(range(99)))
    return NoisyCollector(Collector(pool, Scorer(), None, KrayConfig().rollout), noise)


def rewards(collector: NoisyCollector, run_seed: int, rollouts: int = 400) -> list[float]:
    collector._draw = Draw(lambda prompt_id: derive_seed(run_seed, 3, prompt_id), None, 0)
    made = [(Rollout("a", i, np.zeros(0), np.zeros(0), "stop", ()), "") for i in range(rollouts)]
    parts = [made[:7], made[7:]]  # however a group was split into tasks
    for part in parts:
        asyncio.run(collector._score(Prompt("a", "", "exact", "x", text="x"), part))
    return [rollout.reward for rollout, _ in made]


def test_noise_flips_a_share_of_the_rewards_and_repeats():
    collector = noisy(0.05)
    found = rewards(collector, 0)
    assert set(found) == {0.75, 0.25}
    assert 8 <= found.count(0.25) <= 36  # of 400, 20 are expected
    assert found == rewards(collector, 0) != rewards(collector, 1)
    assert [flips(derive_seed(0, 3, "a"), i, 0.05) for i in range(400)] == [reward == 0.25 for reward in found]
    assert set(rewards(noisy(0.0), 0)) == {0.75}
    assert set(rewards(noisy(1.0), 0)) == {0.25}


def test_evaluations_see_the_true_rewards(monkeypatch):
    asked = []

    async def collect(self, plan, prompts, draw, priority=TRAINING):
        asked.append((type(self), priority))

    monkeypatch.setattr(Collector, "collect", collect)
    collector = noisy(1.0)
    asyncio.run(collector.collect(None, [], Draw(lambda _: 0, None, 0)))
    asyncio.run(collector.collect(None, [], Draw(lambda _: 0, None, 0), EVALUATION))
    assert asked == [(NoisyCollector, TRAINING), (Collector, EVALUATION)]
