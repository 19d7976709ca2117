"""From a plan to scored groups: rollout tasks out, rollouts in, rewards on.

Promise: every rollout that was asked for is in exactly one group, or counted among the failures with its prompt's id.
Groups come back in the order of the prompts and rollouts in the order of their index, whatever the order of arrival.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from kray.config.schema import RolloutConfig
from kray.records import Prompt, Rollout, RolloutGroup, RolloutTask, Sampling
from kray.rewards.scorer import Scorer
from kray.rollout.pool import Outcome, Pool
from kray.rollout.schedule import split_rollouts


@dataclass(frozen=True, slots=True)
class Order:
    """`rollouts` rollouts of a prompt. seed: of the group; weight: of the prompt in the loss."""

    prompt: Prompt
    tokens: tuple[int, ...]
    rollouts: int
    seed: int
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A data failure: rollouts of a prompt that could not be had, or not be judged."""

    prompt_id: str
    rollouts: int
    why: str


@dataclass(slots=True)
class Collected:
    """groups: those with at least one scored rollout."""

    groups: list[RolloutGroup]
    failures: list[Failure] = field(default_factory=list)
    generate_s: float = 0.0  # first task out to last rollout in
    reward_s: float = 0.0  # from then to the last reward

    @property
    def failed(self) -> int:
        """Rollouts lost to data failures."""
        return sum(failure.rollouts for failure in self.failures)


class Collector:
    """Owns neither pool nor scorer. lengths: running mean of each prompt's response tokens, for scheduling."""

    def __init__(self, pool: Pool, scorer: Scorer, tokenizer: Any, rollout: RolloutConfig):
        self.pool, self.scorer, self.tokenizer, self.rollout = pool, scorer, tokenizer, rollout
        self.lengths: dict[str, float] = {}
        self._ids = count()

    async def collect(self, orders: Sequence[Order], sampling: Sampling, version: int) -> Collected:
        """Carries the orders out with the policy of this version."""
        started = time.monotonic()
        by_id = {order.prompt.id: order for order in orders}
        assert len(by_id) == len(orders), "a prompt was ordered twice"
        collected = Collected([])
        rollouts: dict[str, list[Rollout]] = {order.prompt.id: [] for order in orders}
        scoring: list[asyncio.Task] = []
        try:
            async for outcome in self.pool.run(self._tasks(orders, sampling, version)):
                prompt = by_id[outcome.task.prompt_id].prompt
                if outcome.failure:
                    collected.failures.append(Failure(prompt.id, outcome.task.rollouts, outcome.failure))
                    continue
                scoring.append(asyncio.create_task(self._score(prompt, outcome)))
            generated = time.monotonic()
            for scored, failures in await asyncio.gather(*scoring):
                collected.failures += failures
                for rollout in scored:
                    rollouts[rollout.prompt_id].append(rollout)
        finally:
            for task in scoring:
                task.cancel()
        for order in orders:
            found = sorted(rollouts[order.prompt.id], key=lambda rollout: rollout.index)
            if found:
                collected.groups.append(RolloutGroup(order.prompt, order.tokens, found, order.weight))
                self._remember(order.prompt.id, found)
        collected.generate_s, collected.reward_s = generated - started, time.monotonic() - generated
        assert sum(len(g.rollouts) for g in collected.groups) + collected.failed == sum(o.rollouts for o in orders)
        return collected

    def _tasks(self, orders: Sequence[Order], sampling: Sampling, version: int) -> list[RolloutTask]:
        return [
            RolloutTask(
                id=next(self._ids),
                prompt_id=order.prompt.id,
                prompt_tokens=order.tokens,
                rollouts=rollouts,
                first_index=first,
                seed=order.seed,
                policy_version=version,
                sampling=sampling,
                timeout_s=self.rollout.task_timeout_s,
                expected_tokens=self.lengths.get(order.prompt.id, float(sampling.max_tokens)),
            )
            for order in orders
            for first, rollouts in split_rollouts(order.rollouts, self.rollout.split)
        ]

    async def _score(self, prompt: Prompt, outcome: Outcome) -> tuple[list[Rollout], list[Failure]]:
        """The outcome's rollouts with rewards, and what could not be judged."""
        for rollout in outcome.rollouts:
            rollout.text = self.tokenizer.decode(rollout.tokens.tolist(), skip_special_tokens=True)
        verdicts = await self.scorer.score([(prompt.verifier, r.text, prompt.answer) for r in outcome.rollouts])
        scored, failures = [], []
        for rollout, verdict in zip(outcome.rollouts, verdicts, strict=True):
            if verdict.reward is None:
                failures.append(Failure(prompt.id, 1, f"reward: {verdict.error}"))
            else:
                rollout.reward, rollout.reward_detail = verdict.reward, verdict.detail
                scored.append(rollout)
        return scored, failures

    def _remember(self, prompt_id: str, rollouts: list[Rollout]) -> None:
        mean = sum(len(rollout.tokens) for rollout in rollouts) / len(rollouts)
        self.lengths[prompt_id] = (self.lengths.get(prompt_id, mean) + mean) / 2
