"""Steps whose rewards are all the same are reported once, with what to look at, and only when they tell nothing."""

from __future__ import annotations

import numpy as np
import pytest
from coin_flip_training import Record, begin, configured, train
from logged_lines import logged_lines

from kray.config import KrayConfig
from kray.driver.flat_rewards import LEAST_ROLLOUTS, STEPS, FlatRewards
from kray.records import Allocation, Prompt, Rollout, RolloutGroup
from kray.rollout.collected import CollectedStep
from kray.rollout.outcome import Failure

PROMPT = Prompt("p", "4", "math", "s", text="2+2=")
ENOUGH = LEAST_ROLLOUTS // STEPS + 1


def a_step(*rewards: float, finish: str = "stop", detail: str = "", failed: int = 0, others=()) -> CollectedStep:
    def group(given) -> RolloutGroup:
        empty = np.zeros(0, np.int32), np.zeros(0, np.float32)
        rollouts = [Rollout("p", i, *empty, finish, (), "", reward, detail) for i, reward in enumerate(given)]
        return RolloutGroup(PROMPT, (1,), rollouts, 1.0)

    one = np.ones(1)
    allocation = Allocation(["p"], len(rewards) * one.astype(np.int64), one, one, one)
    lost = [Failure("p", failed, "why")] if failed else []
    groups = [group(rewards)] if rewards else []
    return CollectedStep(allocation, groups, lost, others=[group(others)] if others else [])


def said(steps, config: KrayConfig | None = None) -> list[tuple[int, str]]:
    watch = FlatRewards(config or KrayConfig())
    return [(number, text) for number, step in enumerate(steps, 1) if (text := watch.step(step))]


def test_it_is_said_once_after_so_many_steps_with_what_to_look_at():
    config = KrayConfig()
    config.reward.verifier = "math"
    step = a_step(*[0.0] * ENOUGH, finish="length", detail="no final answer", failed=3)
    ((number, text),) = said([step] * 50, config)
    assert number == STEPS
    assert text == (
        f"all {STEPS * ENOUGH} rewards of the last {STEPS} steps were 0: there is nothing to learn from. See some responses in "
        'samples/, and look at what gives the rewards (reward.verifier math, which says of 100% "no final answer"); whether '
        "the prompts ask for the form of answer that it looks for (template, system); whether they are too hard for the "
        f"policy; rollout.max_response_tokens {config.rollout.max_response_tokens}, which cut off 100% of responses; the data "
        "failures, 3 in this step"
    )


def test_prompts_that_are_all_solved_are_reported_as_too_easy():
    config = KrayConfig()
    config.environment.name = "calculator"
    ((_, text),) = said([a_step(*[1.0] * ENOUGH)] * STEPS, config)
    assert "were 1: there is nothing to learn from" in text
    assert text.endswith(
        "look at what gives the rewards (environment.name calculator); whether the prompts are too easy"
    )


@pytest.mark.parametrize(
    "steps",
    [
        [a_step(*[0.0] * ENOUGH)] * (STEPS - 1),
        [a_step(0.0)] * STEPS,
        [a_step()] * 30,
        [*[a_step(*[0.0] * ENOUGH)] * (STEPS - 1), a_step(0.0, 1.0)] * 3,
        [a_step(*[float(i % 2)] * ENOUGH) for i in range(40)],
        [a_step(*[0.0] * ENOUGH, others=[1.0])] * 30,
        [a_step(*[0.5] * ENOUGH, 0.25)] * 30,
    ],
    ids=["few steps", "few rewards", "none", "mixed between", "steps differ", "roles differ", "rewards differ"],
)
def test_nothing_is_said_while_rewards_tell_something(steps):
    assert said(steps) == []


def test_steps_without_rewards_do_not_count():
    steps = [a_step(*[0.0] * ENOUGH), a_step(failed=4)] * STEPS
    assert [number for number, _ in said(steps)] == [2 * STEPS - 1]


def test_a_run_says_it_once(tmp_path, monkeypatch):
    monkeypatch.setattr("coin_flip_training.flip", flip_nothing)
    with logged_lines() as lines:
        assert train(begin(tmp_path, configured(tmp_path, f"run.steps={STEPS + 5}"), Record())) is None
    found = [line for line in lines if "there is nothing to learn from" in line]
    assert len(found) == 1
    assert found[0].startswith(f"warning: step {STEPS}: all ")


def flip_nothing(prompt_id: str, seed: int, index: int, version: int) -> Rollout:
    return Rollout(
        prompt_id, index, np.zeros(2, np.int32), np.zeros(2, np.float32), "stop", ((version, 0, 2),), "", 0.0
    )
