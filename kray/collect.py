"""From a plan to scored groups: rollout tasks out, rollouts in, rewards on, and labels back to the plan as they come.

Promise: every rollout that the plan took is in exactly one group, or counted among the failures with its prompt's id.
Groups come back in the order of the prompts and rollouts in the order of their index, whatever the order of arrival.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from kray.config.schema import RolloutConfig
from kray.records import KrayError, Prompt, Rollout, RolloutGroup, RolloutTask, Sampling
from kray.rewards.scorer import TIMED_OUT, Scorer
from kray.rollout.outcome import Outcome
from kray.rollout.pool import Pool
from kray.rollout.schedule import largest_part, split_rollouts

TRAINING, EVALUATION = 0, 1  # priorities of rollout tasks, the lower first
Seeds = Callable[[str], int]  # a group's seed from its prompt's id


class Plan(Protocol):
    """What is to be generated, named bit by bit as labels come back; kray.planner.step.StepPlan is one."""

    @property
    def done(self) -> bool: ...

    def room(self, free: int | None = None) -> int | None: ...

    def take(self, room: int | None = None) -> list[tuple[str, int]]: ...

    def observe(self, prompt_id: str, rewards: list[float], tokens: float | None = None) -> None: ...

    def lost(self, prompt_id: str, rollouts: int = 1) -> None: ...


class Fixed:
    """A plan that asks for the same number of rollouts of each prompt, all at once."""

    def __init__(self, prompt_ids: Sequence[str], rollouts: int):
        self._waiting = [(prompt_id, rollouts) for prompt_id in prompt_ids] if rollouts else []
        self._flying = 0

    @property
    def done(self) -> bool:
        return not self._waiting and not self._flying

    def room(self, free: int | None = None) -> int | None:
        return free

    def take(self, room: int | None = None) -> list[tuple[str, int]]:
        taken, self._waiting = self._waiting, []
        self._flying += sum(rollouts for _, rollouts in taken)
        return taken

    def observe(self, prompt_id: str, rewards: list[float], tokens: float | None = None) -> None:
        self._flying -= len(rewards)

    def lost(self, prompt_id: str, rollouts: int = 1) -> None:
        self._flying -= rollouts


@dataclass(frozen=True, slots=True)
class Failure:
    """A data failure: rollouts of a prompt that could not be had, or not be judged."""

    prompt_id: str
    rollouts: int
    why: str
    tries: int = 1  # that were made to have them


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


def check_failures(failures: Sequence[Failure], ordered: int, max_share: float, say: Callable[[str], None]) -> None:
    """Says the first data failures; raises KrayError when they cost more than that share of the rollouts ordered."""
    lost = sum(failure.rollouts for failure in failures)
    for failure in failures[:3]:
        say(f"data failure: prompt {failure.prompt_id}: {failure.rollouts} rollouts: {failure.why}")
    if lost > max_share * ordered:
        first = failures[0]
        raise KrayError(
            f"{lost} of {ordered} rollouts failed, run.max_failed_share is {max_share:g}; the first, of prompt "
            f"{first.prompt_id}: {first.why}"
        )


def verdicts(collected: Collected) -> tuple[list[str], dict[str, tuple[int, str]]]:
    """For the quarantine: prompts of which something came back, and (tries, why) of those without anything to learn from.

    Nothing to learn from: every rollout failed, or judging every one took longer than its deadline.
    """
    slow = [g.prompt.id for g in collected.groups if all(r.reward_detail.startswith(TIMED_OUT) for r in g.rollouts)]
    failed = {prompt_id: (1, "judging it takes longer than reward.timeout_s") for prompt_id in slow}
    fine = {group.prompt.id for group in collected.groups} - set(slow)
    for failure in collected.failures:
        if failure.prompt_id not in fine:
            tries, _ = failed.get(failure.prompt_id, (0, ""))
            failed[failure.prompt_id] = (max(tries, failure.tries), failure.why)
    return sorted(fine), failed


class Collector:
    """Owns neither pool nor scorer. lengths: running mean of each prompt's response tokens, for scheduling."""

    def __init__(self, pool: Pool, scorer: Scorer, tokenizer: Any, rollout: RolloutConfig):
        self.pool, self.scorer, self.tokenizer, self.rollout = pool, scorer, tokenizer, rollout
        self.lengths: dict[str, float] = {}
        self._ids = count()

    async def collect(
        self,
        plan: Plan,
        prompts: Sequence[tuple[Prompt, tuple[int, ...]]],
        seeds: Seeds,
        sampling: Sampling,
        version: int,
        remember: bool = True,
        priority: int = TRAINING,
    ) -> Collected:
        """Carries a plan over (prompt, tokens) pairs out with the policy of this version.

        seeds: a group's seed from its prompt's id. version: of the policy served now. remember: whether lengths are to be
        learned from. Groups have weight 0: the plan knows it when it is done.
        Raises KrayError when the plan cannot use a reward.
        """
        started = generated = time.monotonic()
        known = dict((prompt.id, (prompt, tokens)) for prompt, tokens in prompts)
        collected = Collected([])
        rollouts: dict[str, list[Rollout]] = {prompt_id: [] for prompt_id in known}
        drawn = dict.fromkeys(known, 0)
        scoring: set[asyncio.Task] = set()
        upcoming: asyncio.Task | None = None
        try:
            with self.pool.open(priority) as session:
                while not plan.done:
                    session.submit(self._tasks(plan.take(plan.room()), known, drawn, seeds, sampling, version))
                    if session.left and upcoming is None:
                        upcoming = asyncio.create_task(session.next())
                    waiting = scoring | ({upcoming} if upcoming else set())
                    assert waiting, "the plan waits, but nothing is under way"
                    ended, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    if upcoming in ended:
                        outcome, upcoming, generated = upcoming.result(), None, time.monotonic()
                        scoring.add(asyncio.create_task(self._score(known[outcome.task.prompt_id][0], outcome)))
                    for task in ended & scoring:
                        scoring.discard(task)
                        scored, failures = task.result()
                        self._take_in(plan, scored, failures, rollouts, collected)
        finally:
            for task in scoring | ({upcoming} if upcoming else set()):
                task.cancel()
        for prompt_id, found in rollouts.items():
            if found:
                found.sort(key=lambda rollout: rollout.index)
                collected.groups.append(RolloutGroup(*known[prompt_id], found, 0.0))
                if remember:
                    self._remember(prompt_id, found)
        collected.generate_s, collected.reward_s = generated - started, time.monotonic() - generated
        assert sum(len(g.rollouts) for g in collected.groups) + collected.failed == sum(drawn.values())
        return collected

    def expected_tokens(self, prompt_ids: Sequence[str]) -> list[float]:
        """Response tokens that one rollout of each prompt is expected to take: its own mean, else the mean of all known."""
        usual = sum(self.lengths.values()) / len(self.lengths) if self.lengths else self.rollout.max_response_tokens / 2
        return [self.lengths.get(prompt_id, usual) for prompt_id in prompt_ids]

    def _tasks(
        self,
        taken: list[tuple[str, int]],
        known: Mapping[str, tuple[Prompt, tuple[int, ...]]],
        drawn: dict[str, int],
        seeds: Seeds,
        sampling: Sampling,
        version: int,
    ) -> list[RolloutTask]:
        """Rollout tasks for what the plan asks for now; `drawn` counts a prompt's rollouts and gives them their index."""
        tasks = []
        step_rollouts = sum(drawn.values()) + sum(wanted for _, wanted in taken)  # so far
        largest = largest_part(step_rollouts, self.rollout.engines, self.rollout.split)
        for prompt_id, wanted in taken:
            for first, part in split_rollouts(wanted, largest):
                tasks.append(
                    RolloutTask(
                        id=next(self._ids),
                        prompt_id=prompt_id,
                        prompt_tokens=known[prompt_id][1],
                        rollouts=part,
                        first_index=drawn[prompt_id] + first,
                        seed=seeds(prompt_id),
                        policy_version=version,
                        sampling=sampling,
                        timeout_s=self.rollout.task_timeout_s,
                        expected_tokens=self.lengths.get(prompt_id, float(sampling.max_tokens)),
                    )
                )
            drawn[prompt_id] += wanted
        return tasks

    @staticmethod
    def _take_in(
        plan: Plan,
        scored: list[Rollout],
        failures: list[Failure],
        rollouts: dict[str, list[Rollout]],
        collected: Collected,
    ) -> None:
        """Tells the plan what has come back of one task. Beliefs count rewards in [0, 1]: others are clipped for them."""
        for failure in failures:
            plan.lost(failure.prompt_id, failure.rollouts)
        collected.failures += failures
        if scored:
            rewards = [min(1.0, max(0.0, rollout.reward or 0.0)) for rollout in scored]
            try:
                plan.observe(scored[0].prompt_id, rewards, float(sum(len(rollout.tokens) for rollout in scored)))
            except ValueError as error:
                raise KrayError(f"the plan cannot use a reward: {error}") from error
            rollouts[scored[0].prompt_id] += scored

    async def _score(self, prompt: Prompt, outcome: Outcome) -> tuple[list[Rollout], list[Failure]]:
        """The outcome's rollouts with rewards, and what could not be had or judged."""
        if outcome.failure:
            return [], [Failure(prompt.id, outcome.task.rollouts, outcome.failure, outcome.tries)]
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
