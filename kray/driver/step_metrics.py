"""Metrics of a step from its rollouts. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from kray.metrics import (
    COMPLETIONS_CLIPPED_RATIO,
    COMPLETIONS_MAX_LENGTH,
    COMPLETIONS_MEAN_LENGTH,
    FRAC_REWARD_ZERO_STD,
    JUDGE_COST,
    REWARD_FAILED,
    REWARD_FUNCTION,
    REWARD_MEAN,
    REWARD_OF_ROLE,
    REWARD_STD,
    declared,
)
from kray.records import Rollout, RolloutGroup
from kray.rewards.judge import JudgeUsage
from kray.rollout.collected import CollectedStep


def step_record(collected: CollectedStep, update: dict[str, float]) -> dict[str, float]:
    """Return the metrics of a step's rewards and responses, and those of its update."""
    rewards = np.concatenate([group.rewards for group in collected.groups] or [np.zeros(0)])
    every = (*collected.groups, *collected.others)
    rollouts = [rollout for group in every for rollout in group.rollouts]
    lengths = np.array([rollout.sampled_tokens for rollout in rollouts])
    cut = np.array([rollout.finish_reason == "length" for rollout in rollouts])
    flat = [not group.mixed for group in collected.groups]
    some = len(rollouts) > 0
    nan = float("nan")
    return update | {
        REWARD_MEAN: float(rewards.mean()) if some else nan,
        REWARD_STD: float(rewards.std()) if some else nan,
        REWARD_FAILED: float(collected.failed),
        FRAC_REWARD_ZERO_STD: float(np.mean(flat)) if flat else nan,
        COMPLETIONS_MEAN_LENGTH: float(lengths.mean()) if some else nan,
        COMPLETIONS_MAX_LENGTH: float(lengths.max()) if some else nan,
        COMPLETIONS_CLIPPED_RATIO: float(cut.mean()) if some else nan,
        **{REWARD_FUNCTION.of(name): value for name, value in function_means(rollouts).items()},
        **_role_record(every),
        **{declared("environment", name): value for name, value in conversation_record(rollouts).items()},
    }


def function_means(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return the mean value of each of reward.functions over the rollouts to which it applies, by name."""
    names = sorted({name for rollout in rollouts for name in rollout.reward_parts})
    return {
        name: _mean([rollout.reward_parts[name] for rollout in rollouts if name in rollout.reward_parts])
        for name in names
    }


def _mean(values: Sequence[float]) -> float:
    """Return the mean, finite also where a function gives numbers whose sum is not."""
    return math.fsum(value / len(values) for value in values)


def judge_record(usage: JudgeUsage | None) -> dict[str, float]:
    """Return the metrics of what judges were asked for; {} without judges, no cost without prices."""
    if usage is None:
        return {}
    counts: dict[str, float] = {
        declared("judge", name): float(count) for name, count in asdict(usage).items() if name != "cost"
    }
    return counts | ({JUDGE_COST: usage.cost} if usage.cost else {})


def _role_record(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Return the mean reward of each role; {} without roles."""
    roles = dict.fromkeys(group.role for group in groups if group.role)
    return {
        REWARD_OF_ROLE.of(role): float(np.concatenate([group.rewards for group in groups if group.role == role]).mean())
        for role in roles
    }


def conversation_record(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return the metrics of conversations; {} without an environment."""
    conversations = [rollout for rollout in rollouts if rollout.sampled is not None]
    if not conversations:
        return {}
    turns = np.array([rollout.turns for rollout in conversations])
    sampled, whole = (
        sum(rollout.sampled_tokens for rollout in conversations),
        sum(len(rollout.tokens) for rollout in conversations),
    )
    return {
        "turns_mean": float(turns.mean()),
        "turns_max": float(turns.max()),
        "multi_turn_ratio": float((turns > 1).mean()),
        "tokens_ratio": 1 - sampled / max(1, whole),
    }
