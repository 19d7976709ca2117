"""From a plan to scored groups: rollout tasks out, rollouts in, rewards on, and labels back to the plan as they come.

Promise: every rollout that the plan took is in exactly one group, or counted among the failures with its prompt's id.
Groups come back in the order of the prompts and rollouts in the order of their index, whatever the order of arrival.
Where there is an environment, a rollout is a conversation (kray/rollout/conversation.py) and comes back when that has ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kray.config.schema import RolloutConfig
from kray.errors import KrayError
from kray.records import EncodedPrompt, Prompt, Rollout, RolloutGroup, RolloutTask, Sampling
from kray.rewards.remote import RemoteScorer
from kray.rewards.scorer import TIMED_OUT, Scorer
from kray.rollout.conversation import ConversationRunner, Conversations, TurnResult
from kray.rollout.outcome import Failure, TaskOutcome
from kray.rollout.pool import Pool
from kray.rollout.scheduler import largest_part, split_rollouts

logger = logging.getLogger(__name__)

TRAINING, EVALUATION = 0, 1  # priorities of rollout tasks, the lower first
Seeds = Callable[[str], int]  # a group's seed from its prompt's id


class Plan(Protocol):
    """What is to be generated, named bit by bit as labels come back; kray.planner.step_plan.StepPlan is one."""

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


def check_failures(failures: Sequence[Failure], ordered: int, max_share: float) -> None:
    """Says the first data failures; raises KrayError when they cost more than that share of the rollouts ordered."""
    lost = sum(failure.rollouts for failure in failures)
    for failure in failures[:3]:
        logger.info(f"data failure: prompt {failure.prompt_id}: {failure.rollouts} rollouts: {failure.why}")
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
    """Owns neither pool, scorer nor host. lengths: running mean of each prompt's response tokens, for scheduling.

    host: of the conversations; None: a rollout is one response.
    """

    def __init__(
        self,
        pool: Pool,
        scorer: Scorer | RemoteScorer,
        tokenizer: Any,
        rollout: RolloutConfig,
        host: ConversationRunner | None = None,
    ):
        self.pool, self.scorer, self.tokenizer, self.rollout, self.host = pool, scorer, tokenizer, rollout, host
        self.lengths: dict[str, float] = {}
        self._ids = pool.task_ids  # of one counter: engines outlive a collector

    async def collect(
        self,
        plan: Plan,
        prompts: Sequence[EncodedPrompt],
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
        talks = await self.host.open(prompts, seeds, priority) if self.host else None
        known = {pair.prompt.id: pair for pair in (talks.prompts if talks else prompts)}
        broken = talks.broken if talks else {}
        collected = Collected([])
        rollouts: dict[str, list[Rollout]] = {prompt_id: [] for prompt_id in known}
        drawn = dict.fromkeys(known, 0)
        under_way: set[asyncio.Task] = set()  # what becomes of outcomes and rollouts: each a TurnResult of one prompt
        ordered = 0  # rollouts so far
        upcoming: asyncio.Task | None = None
        news: asyncio.Queue[asyncio.Task] = asyncio.Queue()  # what has ended: an event costs the same, whatever waits
        try:
            with self.pool.open(priority) as session:
                while not plan.done:
                    taken = plan.take(plan.room())
                    ordered += sum(wanted for _, wanted in taken)
                    tasks = self._tasks(taken, ordered, known, drawn, seeds, sampling, version) if taken else []
                    session.submit([task for task in tasks if task.prompt_id not in broken])
                    lost = [task for task in tasks if task.prompt_id in broken]
                    under_way |= {_telling(_lost(task, broken[task.prompt_id]), news) for task in lost}
                    if session.left and upcoming is None:
                        upcoming = _telling(session.next(), news)
                    assert under_way or upcoming, "the plan waits, but nothing is under way"
                    ended = [await news.get()]
                    while not news.empty():
                        ended.append(news.get_nowait())
                    for task in ended:
                        if task is upcoming:
                            outcome, upcoming, generated = task.result(), None, time.monotonic()
                            prompt = known[outcome.task.prompt_id][0]
                            under_way.add(_telling(self._hear(prompt, outcome, talks), news))
                            continue
                        under_way.discard(task)
                        heard: TurnResult = task.result()
                        if heard.tasks:
                            session.submit(heard.tasks)
                        if heard.ended:
                            prompt = known[heard.ended[0][0].prompt_id][0]
                            under_way.add(_telling(self._score(prompt, heard.ended), news))
                        self._take_in(plan, heard, rollouts, collected)
        finally:
            for task in under_way | ({upcoming} if upcoming else set()):
                task.cancel()
        for prompt_id, found in rollouts.items():
            if found:
                found.sort(key=lambda rollout: rollout.index)
                collected.groups.append(RolloutGroup(*known[prompt_id], found, 0.0))
        if remember:
            self.remember(collected.groups)
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
        ordered: int,
        known: Mapping[str, EncodedPrompt],
        drawn: dict[str, int],
        seeds: Seeds,
        sampling: Sampling,
        version: int,
    ) -> list[RolloutTask]:
        """Rollout tasks for what the plan asks for now; `drawn` counts a prompt's rollouts and gives them their index.

        ordered: rollouts of the step so far, these included.
        """
        tasks = []
        largest = largest_part(ordered, self.rollout.engines, self.rollout.split)
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
    def _take_in(plan: Plan, heard: TurnResult, rollouts: dict[str, list[Rollout]], collected: Collected) -> None:
        """Tells the plan what has come back of one task. Beliefs count rewards in [0, 1]: others are clipped for them."""
        for failure in heard.failures:
            plan.lost(failure.prompt_id, failure.rollouts)
        collected.failures += heard.failures
        if scored := heard.scored:
            rewards = [min(1.0, max(0.0, rollout.reward or 0.0)) for rollout in scored]
            try:
                plan.observe(scored[0].prompt_id, rewards, float(sum(rollout.sampled_tokens for rollout in scored)))
            except ValueError as error:
                raise KrayError(f"the plan cannot use a reward: {error}") from error
            rollouts[scored[0].prompt_id] += scored

    async def _hear(self, prompt: Prompt, outcome: TaskOutcome, talks: Conversations | None) -> TurnResult:
        """What becomes of an outcome: conversations go on or have ended, single responses are judged at once."""
        if talks is not None:
            return await talks.process_outcome(outcome, lambda: next(self._ids))
        if outcome.failure:
            return TurnResult(failures=[Failure(prompt.id, outcome.task.rollouts, outcome.failure, outcome.tries)])
        for rollout in outcome.rollouts:
            rollout.text = self.tokenizer.decode(rollout.tokens.tolist(), skip_special_tokens=True)
        return await self._score(prompt, [(rollout, rollout.text) for rollout in outcome.rollouts])

    async def _score(self, prompt: Prompt, ended: Sequence[tuple[Rollout, str]]) -> TurnResult:
        """The rollouts with rewards, by their text where they have none yet; and what could not be judged."""
        heard = TurnResult(scored=[rollout for rollout, _ in ended if rollout.reward is not None])
        left = [(rollout, text) for rollout, text in ended if rollout.reward is None]
        verdicts = await self.scorer.score([(prompt.verifier, text, prompt.answer) for _, text in left])
        for (rollout, _), verdict in zip(left, verdicts, strict=True):
            if verdict.reward is None:
                heard.failures.append(Failure(prompt.id, 1, f"reward: {verdict.error}"))
            else:
                rollout.reward, rollout.reward_detail = verdict.reward, verdict.detail
                heard.scored.append(rollout)
        return heard

    def remember(self, groups: Sequence[RolloutGroup]) -> None:
        """Learns the lengths of the prompts' responses."""
        for group in groups:
            mean = group.tokens / len(group.rollouts)
            self.lengths[group.prompt.id] = (self.lengths.get(group.prompt.id, mean) + mean) / 2


async def _lost(task: RolloutTask, why: str) -> TurnResult:
    """A task that cannot be done."""
    return TurnResult(failures=[Failure(task.prompt_id, task.rollouts, why)])


def _telling(work: Any, news: asyncio.Queue[asyncio.Task]) -> asyncio.Task:
    """The work as a task that is put among the news when it ends."""
    task = asyncio.create_task(work)
    task.add_done_callback(news.put_nowait)
    return task
