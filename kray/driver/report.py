"""What a run says and records of itself: lines for people, rows and metrics for MLflow. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kray.config import KrayConfig
from kray.plan_modes import offered_share
from kray.planner import Beliefs
from kray.planner.metrics import STATUSES
from kray.records import Allocation, Rollout

if TYPE_CHECKING:  # jobs read reports without loading Ray
    from kray.driver.evaluation import Evaluation
    from kray.rollout.collector import Collected


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended. Accuracies are mean rewards on the test prompts, None where there was no evaluation."""

    folder: str
    steps: int
    of_steps: int
    stopped: str  # why it ended early, "" if it did not
    accuracy_before: float | None
    accuracy_after: float | None
    greedy_after: float | None
    test_prompts: int
    effective_rollouts: float  # mean over the steps: rollouts in mixed groups / rollouts
    effective_prompts: float  # mean over the steps: prompts with a mixed group / prompts
    shares: dict[str, float]  # of the steps' time: generate, reward, update, sync; idle: of an engine's
    rollouts: int
    tokens: int
    elapsed_s: float  # in steps
    engine_deaths: int
    restarts: dict[str, int]  # of the learner and of the driver
    left_out: dict[str, str]  # prompts in quarantine -> why
    open_command: str


def admitted(allocation: Allocation) -> Allocation:
    """Without the candidates that got no rollouts."""
    on = allocation.budgets > 0
    if on.all():
        return allocation
    arrays = ("budgets", "weights", "expected_success", "expected_value")
    return Allocation(
        [prompt_id for prompt_id, has in zip(allocation.prompt_ids, on, strict=True) if has],
        **{name: getattr(allocation, name)[on] for name in arrays},
    )


def start_line(folder: Path, config: KrayConfig, train: int, test: int, resumed: int | None) -> str:
    begin = "new run" if resumed is None else f"resumed after step {resumed}"
    share = offered_share(config.plan)
    prompts = f"up to {round(share * config.prompts.per_step)}" if share > 1 else f"{config.prompts.per_step}"
    return (
        f"{begin}: {folder}: {config.run.steps} steps of {prompts} prompts and {config.plan.budget} rollouts "
        f"({config.plan.mode}), {train} prompts to train on, {test} held out"
    )


def step_line(step: int, steps: int, metrics: dict[str, float], left_s: float) -> str:
    """The one compact line of a step."""
    m = metrics
    return (
        f"step {step:>{len(str(steps))}}/{steps}  reward {m['reward/mean']:.3f}  "
        f"teaching {m['group/effective_ratio_prompts']:.0%} of prompts, {m['group/effective_ratio_rollouts']:.0%} of rollouts  "
        f"budget {m['budget/min']:.0f}..{m['budget/max']:.0f}  {m['timing_s/step']:.1f} s "
        f"(generate {m['timing_s/generate']:.1f}, update {m['timing_s/update']:.1f}, sync {m['timing_s/sync']:.1f})  "
        f"left {duration(left_s)}"
    )


def evaluation_line(step: int, evaluation: Evaluation, when: str, seconds: float) -> str:
    """accuracy with its 95 % interval over prompts."""
    greedy = "" if evaluation.greedy is None else f", greedy {evaluation.greedy:.3f}"
    turns = evaluation.conversations.get("turns_mean")
    greedy += "" if turns is None else f", {turns:.2f} turns"
    return (
        f"evaluation {when or f'after step {step}'}: accuracy {evaluation.accuracy:.3f} ± {1.96 * evaluation.accuracy_se:.3f}"
        f"{greedy} on {evaluation.prompts} held-out prompts x {evaluation.samples} samples ({seconds:.1f} s)"
    )


def duration(seconds: float) -> str:
    """'45 s', '12 min' or '3 h 20 min'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def step_record(collected: Collected, update: dict[str, float]) -> dict[str, float]:
    """Rewards and responses of a step, and what the learner said of its update."""
    rewards = np.concatenate([group.rewards for group in collected.groups] or [np.zeros(0)])
    rollouts = [rollout for group in collected.groups for rollout in group.rollouts]
    lengths = np.array([rollout.sampled_tokens for rollout in rollouts])
    cut = np.array([rollout.finish_reason == "length" for rollout in rollouts])
    flat = [not group.mixed for group in collected.groups]
    some = len(rollouts) > 0
    nan = float("nan")
    return update | {
        "reward/mean": float(rewards.mean()) if some else nan,
        "reward/std": float(rewards.std()) if some else nan,
        "reward/failed": float(collected.failed),
        "frac_reward_zero_std": float(np.mean(flat)) if flat else nan,
        "completions/mean_length": float(lengths.mean()) if some else nan,
        "completions/max_length": float(lengths.max()) if some else nan,
        "completions/clipped_ratio": float(cut.mean()) if some else nan,
        **{f"environment/{name}": value for name, value in conversation_record(rollouts).items()},
    }


def conversation_record(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What an environment made of rollouts; {} where there was none."""
    talks = [rollout for rollout in rollouts if rollout.sampled is not None]
    if not talks:
        return {}
    turns = np.array([rollout.turns for rollout in talks])
    sampled, whole = sum(rollout.sampled_tokens for rollout in talks), sum(len(rollout.tokens) for rollout in talks)
    return {
        "turns_mean": float(turns.mean()),
        "turns_max": float(turns.max()),
        "multi_turn_ratio": float((turns > 1).mean()),
        "tokens_ratio": 1 - sampled / whole,
    }


def transition_rows(transitions: np.ndarray) -> list[dict[str, Any]]:
    """Prompts by status at their last visit (rows) and at this one (columns), (5, 5) counts, as a table."""
    return [
        {"from": before} | dict(zip(STATUSES, row, strict=True))
        for before, row in zip(STATUSES, transitions.tolist(), strict=True)
    ]


def belief_rows(beliefs: Beliefs, prompt_ids: list[str]) -> list[dict[str, Any]]:
    """What is believed about prompts that have been visited, and the labels of their last visit, as a table."""
    alpha, beta = beliefs.posterior(prompt_ids)
    columns = (*beliefs.last_visit(prompt_ids), beliefs.visits(prompt_ids), alpha / (alpha + beta))
    rows = zip(prompt_ids, *(column.tolist() for column in columns), strict=True)
    return [
        {"prompt_id": i, "successes": s, "trials": n, "visits": v, "expected_success": round(p, 4)}
        for i, s, n, v, p in rows
        if n
    ]


def sample_rows(
    allocation: Allocation,
    collected: Collected,
    count: int,
    seed: int,
    read: Callable[[Sequence[int]], str] | None = None,
) -> list[dict[str, Any]]:
    """Draw a table of rollouts from the step.

    Args:
        allocation: The step's plan.
        collected: The step's rollouts.
        count: Rows, each of another prompt.
        seed: Of the draw.
        read: Gives the text of a prompt's tokens as the policy reads them, for the column rendered_prompt; None: no such
            column.

    Returns:
        Rows with the columns that README.md lists under tables.
    """
    rng = np.random.default_rng(seed)
    plan = {
        prompt_id: (float(belief), int(budget))
        for prompt_id, belief, budget in zip(
            allocation.prompt_ids, allocation.expected_success, allocation.budgets, strict=True
        )
    }
    rows = []
    for index in rng.permutation(len(collected.groups))[:count]:
        group = collected.groups[index]
        rollout = group.rollouts[rng.integers(len(group.rollouts))]
        belief, budget = plan[group.prompt.id]
        rows.append(
            {
                "prompt_id": group.prompt.id,
                "prompt": group.prompt.text if group.prompt.text is not None else str(group.prompt.messages),
                **({"rendered_prompt": read(group.prompt_tokens)} if read else {}),
                "response": rollout.text,
                "answer": group.prompt.answer,
                "reward": rollout.reward,
                "detail": rollout.reward_detail,
                "belief": round(belief, 4),
                "budget": budget,
                "group_success": round(float(group.rewards.mean()), 4),
                "tokens": rollout.sampled_tokens,
                "finish": rollout.finish_reason,
            }
        )
    return rows
