"""Tables of a run for MLflow: rollouts, beliefs, transitions between statuses. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kray.planner import Beliefs
from kray.planner.metrics import STATUSES
from kray.prompts.arithmetic_meaning import response_meaning
from kray.rollout.collected import CollectedStep


def transition_rows(transitions: np.ndarray) -> list[dict[str, Any]]:
    """Return a table of status changes.

    Args:
        transitions: (5, 5) counts of prompts by status at their last visit (rows) and at this one (columns).
    """
    return [
        {"from": before} | dict(zip(STATUSES, row, strict=True))
        for before, row in zip(STATUSES, transitions.tolist(), strict=True)
    ]


def belief_rows(beliefs: Beliefs, prompt_ids: list[str]) -> list[dict[str, Any]]:
    """Return a table of the prompts that have been visited: labels of the last visit, visits, expected success rate."""
    alpha, beta = beliefs.posterior(prompt_ids)
    columns = (*beliefs.last_visit(prompt_ids), beliefs.visits(prompt_ids), alpha / (alpha + beta))
    rows = zip(prompt_ids, *(column.tolist() for column in columns), strict=True)
    return [
        {"prompt_id": i, "successes": s, "trials": n, "visits": v, "expected_success": round(p, 4)}
        for i, s, n, v, p in rows
        if n
    ]


def sample_rows(
    collected: CollectedStep,
    count: int,
    seed: int,
    read: Callable[[Sequence[int]], str] | None = None,
) -> list[dict[str, Any]]:
    """Draw a table of rollouts from the step.

    Args:
        collected: The step.
        count: Rows, each of another prompt, or of another role of one.
        seed: Of the draw.
        read: Gives the text of a prompt's tokens as the policy reads them, for the column rendered_prompt; None: no such
            column.

    Returns:
        Rows with the columns that docs/monitoring.md lists.
    """
    rng = np.random.default_rng(seed)
    allocation = collected.allocation
    plan = {
        prompt_id: (float(belief), int(budget))
        for prompt_id, belief, budget in zip(
            allocation.prompt_ids, allocation.expected_success, allocation.budgets, strict=True
        )
    }
    rows = []
    groups = [*collected.groups, *collected.others]
    for index in rng.permutation(len(groups))[:count]:
        group = groups[index]
        rollout = group.rollouts[rng.integers(len(group.rollouts))]
        belief, budget = plan[group.prompt.id]
        meaning = response_meaning(group.prompt, rollout.text, rollout.reward)
        rows.append(
            {
                "prompt_id": group.prompt.id,
                "prompt": group.prompt.text if group.prompt.text is not None else str(group.prompt.messages),
                **({"rendered_prompt": read(group.prompt_tokens)} if read else {}),
                "response": rollout.text,
                "answer": group.prompt.answer,
                **({"meaning": meaning} if meaning else {}),
                **({"role": group.role} if group.role else {}),
                "reward": rollout.reward,
                **{f"reward_{name}": value for name, value in rollout.reward_parts.items()},
                "detail": rollout.reward_detail,
                "belief": round(belief, 4),
                "budget": budget,
                "group_success": round(float(group.rewards.mean()), 4),
                "tokens": rollout.sampled_tokens,
                "finish": rollout.finish_reason,
            }
        )
    return rows
