"""Steps with plan.adapt: kinds come from the prompts, changed limits are logged, and a checkpoint holds them."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from kray.config import KrayConfig, load_config
from kray.driver.components import Components, _planning_parts, unlearned
from kray.driver.restore import restore
from kray.driver.state import RunState
from kray.driver.step import StepRunner
from kray.records import EncodedPrompt, Prompt, Rollout, RolloutGroup
from kray.rollout.collected import CollectedStep

OVERRIDES = ("plan.adapt=true", "prompts.per_step=16", "plan.budget=128", "plan.refit_every=8")


class DrawnCollector:
    """Carries out a plan with rewards that depend on the prompt's kind: hard ones are never solved."""

    def __init__(self):
        self.lengths: dict[str, float] = {}

    def expected_tokens(self, prompt_ids):
        return [1.0 for _ in prompt_ids]

    def remember(self, collected):
        pass

    async def collect(self, plan, prompts, draw):
        known, found = {pair.prompt.id: pair for pair in prompts}, []
        for prompt_id, n in plan.take(None):
            rng = np.random.default_rng(draw.seeds(prompt_id) % 2**32)
            rewards = (rng.random(n) < 0.5) * (known[prompt_id].prompt.metadata["kind"] != "hard")
            plan.observe(prompt_id, rewards.astype(float).tolist())
            rollouts = [
                Rollout(prompt_id, i, np.zeros(1, np.int64), np.zeros(1), "stop", ((0, 0, 1),), reward=float(reward))
                for i, reward in enumerate(rewards)
            ]
            found.append(RolloutGroup(*known[prompt_id], rollouts=rollouts, weight=1.0))
        return CollectedStep(plan.allocation().admitted(), found)


def training_prompts():
    kinds = ["easy", "hard"]
    return [
        EncodedPrompt(Prompt(str(i), "1", "exact", "a", text="?", metadata={"kind": kinds[i % 2]}), (1,))
        for i in range(128)
    ]


def runner(config: KrayConfig, state: RunState) -> StepRunner:
    train = training_prompts()
    parts = Components(None, (), (), train, train[:1], probe=(), **_planning_parts(config, train))
    if state.planner:
        restore(state, parts.planner, parts.admission, parts.labels, config.prompts.per_step)
    workers = SimpleNamespace(collector=lambda components: DrawnCollector())
    return StepRunner(config, parts, state, workers, 0)


def collect(steps: StepRunner, number: int) -> CollectedStep:
    return asyncio.run(steps.collect(number, steps.components.offer(number), number))


@pytest.mark.parametrize("baseline", ["belief", "group"])
def test_changed_limits_are_logged_and_survive_in_a_checkpoint(baseline, caplog):
    caplog.set_level(logging.INFO, logger="kray.driver.step")
    config = load_config("configs/tiny.yaml", [*OVERRIDES, f"train.baseline={baseline}"])
    one = runner(config, RunState())
    for number in range(8):
        metrics = collect(one, number).plan_metrics
    lines = [record.message for record in caplog.records]
    assert any("plan.adapt, a/hard: share offered 1 -> 0.8" in line for line in lines)
    assert not any("a/easy: share offered" in line for line in lines)
    assert metrics["planner/kind_offered_a/hard"] < 1 == metrics["planner/kind_offered_a/easy"]
    assert metrics["planner/kind_upper_a/hard"] < 128 == metrics["planner/kind_upper_a/easy"]
    kept = json.loads(json.dumps(one.to_dict()))
    other = runner(config, RunState(step=8, **kept))
    for number in range(8, 12):
        caplog.clear()
        first = collect(one, number)
        told = [record.message for record in caplog.records]
        caplog.clear()
        second = collect(other, number)
        assert told == [record.message for record in caplog.records]
        assert first.allocation.prompt_ids == second.allocation.prompt_ids
        assert first.allocation.budgets.tolist() == second.allocation.budgets.tolist()
        assert first.plan_metrics == second.plan_metrics


def test_runs_without_it_know_no_kinds():
    config = load_config("configs/tiny.yaml", [*OVERRIDES, "plan.adapt=false"])
    steps = runner(config, RunState())
    assert not any("/kind_" in name for name in collect(steps, 0).plan_metrics)
    assert "adaptation" not in steps.to_dict()["planner"]
    changed = load_config("configs/tiny.yaml", OVERRIDES)
    assert unlearned(steps.components, changed).planner.adaptation.names == ["a/easy", "a/hard"]
