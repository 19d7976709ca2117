"""From a plan to scored groups: rollout tasks go out, rollouts come in, rewards are asked for, labels return to the plan.

Every rollout that the plan took is in exactly one group, or counted among the failures with its prompt's id. Groups are in
the order of the prompts and rollouts in the order of their index, whatever the order of arrival. Where there is an
environment, a rollout is a conversation (kray/rollout/conversation.py), or an episode with roles (kray/rollout/episodes.py),
and comes back when that has ended.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kray.config.players import Player
from kray.config.schema import RolloutConfig
from kray.errors import KrayError
from kray.prompts.tokenize import decoded
from kray.records import Allocation, EncodedPrompt, Prompt, Rollout, RolloutGroup, RolloutTask, Sampling
from kray.rewards import VERIFIERS, Sample
from kray.rewards.composed import ComposedScorer
from kray.rewards.remote import RemoteScorer
from kray.rewards.scorer import Scorer
from kray.rollout.collected import CollectedStep
from kray.rollout.conversation import ConversationRunner, Conversations, TurnResult
from kray.rollout.episodes import EpisodeRunner, Episodes
from kray.rollout.outcome import Failure, TaskOutcome
from kray.rollout.parts import largest_part, split_rollouts
from kray.rollout.plans import Plan
from kray.rollout.pool import Pool, Session
from kray.rollout.views import split_roles

# Priorities of rollout tasks: the lower one is generated first.
TRAINING, EVALUATION = 0, 1

# Gives the seed of a group by its prompt's id.
Seeds = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Draw:
    """How responses are drawn.

    Attributes:
        seeds: Gives the seed of a group by its prompt's id.
        sampling: Temperature, limits and stops.
        version: The policy version that engines serve.
    """

    seeds: Seeds
    sampling: Sampling
    version: int


class Collector:
    """Carries out plans on a pool and a scorer that belong to its caller.

    Attributes:
        lengths: Running mean of the response tokens of each prompt, for scheduling.
        host: Runs the conversations or episodes; None where a rollout is one response.
    """

    def __init__(
        self,
        pool: Pool,
        scorer: Scorer | RemoteScorer | ComposedScorer,
        tokenizer: Any,
        rollout: RolloutConfig,
        host: ConversationRunner | EpisodeRunner | None = None,
    ):
        self.pool, self.scorer, self.tokenizer, self.rollout, self.host = pool, scorer, tokenizer, rollout, host
        self.lengths: dict[str, float] = {}
        # The pool's counter: engines outlive a collector, and no task id may come twice.
        self._ids = pool.task_ids

    def against(self, players: Mapping[str, Player]) -> Collector:
        """Return a collector of episodes with other players, which shares everything else with this one."""
        assert isinstance(self.host, EpisodeRunner)
        other = copy.copy(self)
        other.host = self.host.against(players)
        return other

    async def collect(
        self, plan: Plan, prompts: Sequence[EncodedPrompt], draw: Draw, priority: int = TRAINING
    ) -> CollectedStep:
        """Carry out a plan over these prompts.

        Args:
            plan: Names rollouts until it is done.
            prompts: All prompts that the plan may name.
            draw: How responses are drawn.
            priority: Of the rollout tasks, TRAINING or EVALUATION.

        Returns:
            The allocation, the groups with their weights, the failures, and the seconds of generation and rewards.

        Raises:
            KrayError: The plan cannot use a reward, or no engine is left.
        """
        started = time.monotonic()
        conversations = await self.host.open(prompts, draw.seeds, priority) if self.host else None
        work = _Collection(self, plan, conversations.prompts if conversations else prompts, draw, conversations)
        try:
            with self.pool.open(priority) as session:
                await work.run(session)
        finally:
            work.cancel()
            if conversations:
                conversations.close()
        allocation = plan.allocation().admitted()
        groups, others = split_roles(work.groups(allocation))
        generate_s, reward_s = work.generated - started, time.monotonic() - work.generated
        collected = CollectedStep(allocation, groups, work.failures, generate_s, reward_s, others=others)
        assert collected.rollouts + collected.failed == sum(work.drawn.values())
        return collected

    def expected_tokens(self, prompt_ids: Sequence[str]) -> list[float]:
        """Return the response tokens that one rollout of each prompt is expected to take.

        Returns:
            The prompt's own running mean, else the mean over all known prompts.
        """
        usual = sum(self.lengths.values()) / len(self.lengths) if self.lengths else self.rollout.max_response_tokens / 2
        return [self.lengths.get(prompt_id, usual) for prompt_id in prompt_ids]

    def remember(self, collected: CollectedStep) -> None:
        """Update the running means of the prompts' response lengths, over all roles that learn."""
        tokens: dict[str, int] = {}
        for group in (*collected.groups, *collected.others):
            tokens[group.prompt.id] = tokens.get(group.prompt.id, 0) + group.tokens
        for group in collected.groups:
            mean = tokens[group.prompt.id] / len(group.rollouts)
            self.lengths[group.prompt.id] = (self.lengths.get(group.prompt.id, mean) + mean) / 2

    def _make_tasks(
        self,
        taken: list[tuple[str, int]],
        ordered: int,
        known: Mapping[str, EncodedPrompt],
        drawn: dict[str, int],
        draw: Draw,
    ) -> list[RolloutTask]:
        """Make rollout tasks of what the plan took; `drawn` counts the rollouts of each prompt and gives them their index.

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
                        prompt_tokens=known[prompt_id].tokens,
                        rollouts=part,
                        first_index=drawn[prompt_id] + first,
                        seed=draw.seeds(prompt_id),
                        policy_version=draw.version,
                        sampling=draw.sampling,
                        timeout_s=self.rollout.task_timeout_s,
                        expected_tokens=self.lengths.get(prompt_id, float(draw.sampling.max_tokens)),
                    )
                )
            drawn[prompt_id] += wanted
        return tasks

    async def _process_outcome(
        self, prompt: Prompt, outcome: TaskOutcome, conversations: Conversations | Episodes | None
    ) -> TurnResult:
        """Continue or end the conversations of an outcome; score single responses at once."""
        if conversations is not None:
            return await conversations.process_outcome(outcome, lambda: next(self._ids))
        if outcome.failure:
            return TurnResult(failures=[Failure(prompt.id, outcome.task.rollouts, outcome.failure, outcome.tries)])
        for rollout in outcome.rollouts:
            rollout.text = decoded(rollout.tokens.tolist(), self.tokenizer)
        return await self._score(prompt, [(rollout, rollout.text) for rollout in outcome.rollouts])

    async def _score(self, prompt: Prompt, ended: Sequence[tuple[Rollout, str]]) -> TurnResult:
        """Score the rollouts that have no reward yet by their texts."""
        result = TurnResult(scored=[rollout for rollout, _ in ended if rollout.reward is not None])
        left = [(rollout, text) for rollout, text in ended if rollout.reward is None]
        # kray's own verifiers need nothing but the answer.
        plain = prompt.verifier in VERIFIERS
        subjects = [prompt.answer if plain else Sample(prompt, rollout.tokens) for rollout, _ in left]
        items = [(prompt.verifier, text, subject) for (_, text), subject in zip(left, subjects, strict=True)]
        # Environments that give the reward themselves leave nothing to score.
        verdicts = await self.scorer.score(items) if items else []
        for (rollout, _), verdict in zip(left, verdicts, strict=True):
            if verdict.reward is None:
                result.failures.append(Failure(prompt.id, 1, f"reward: {verdict.error}"))
            else:
                rollout.reward, rollout.reward_detail, rollout.reward_parts = (
                    verdict.reward,
                    verdict.detail,
                    verdict.parts,
                )
                rollout.reward_late = verdict.timed_out
                result.scored.append(rollout)
        return result


@dataclass(slots=True)
class _Collection:
    """The state of one `Collector.collect`.

    Attributes:
        rollouts: Scored rollouts of each prompt, in the order of arrival.
        drawn: Rollouts that the plan took of each prompt.
        ordered: Rollouts that the plan took of all prompts.
        pending: Outcomes and rollouts that are being processed; each gives a TurnResult of one prompt.
        upcoming: Waits for the next outcome of the session.
        ended: The tasks that have ended. An event costs the same, however many are pending.
        generated: When the newest outcome came, in monotonic seconds.
    """

    collector: Collector
    plan: Plan
    prompts: Sequence[EncodedPrompt]
    draw: Draw
    conversations: Conversations | Episodes | None
    known: dict[str, EncodedPrompt] = field(init=False)
    rollouts: dict[str, list[Rollout]] = field(init=False)
    drawn: dict[str, int] = field(init=False)
    failures: list[Failure] = field(default_factory=list)
    ordered: int = 0
    pending: set[asyncio.Task] = field(default_factory=set)
    upcoming: asyncio.Task | None = None
    ended: asyncio.Queue[asyncio.Task] = field(default_factory=asyncio.Queue)
    generated: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.known = {pair.prompt.id: pair for pair in self.prompts}
        self.rollouts = {prompt_id: [] for prompt_id in self.known}
        self.drawn = dict.fromkeys(self.known, 0)

    async def run(self, session: Session) -> None:
        """Submit what the plan takes and give it what comes back, until it is done."""
        while not self.plan.done:
            self._submit(session, self.plan.take(self.plan.room()))
            if session.left and self.upcoming is None:
                self.upcoming = self._start(session.next())
            assert self.pending or self.upcoming, "the plan waits, but nothing is under way"
            ended = [await self.ended.get()]
            while not self.ended.empty():
                ended.append(self.ended.get_nowait())
            for task in ended:
                if task is self.upcoming:
                    outcome, self.upcoming, self.generated = task.result(), None, time.monotonic()
                    prompt = self.known[outcome.task.prompt_id].prompt
                    work = self.collector._process_outcome(prompt, outcome, self.conversations)
                    self.pending.add(self._start(work))
                else:
                    self.pending.discard(task)
                    self._take_in(session, task.result())

    def groups(self, allocation: Allocation) -> list[RolloutGroup]:
        """Return the scored rollouts in groups, with the plan's weight of each prompt and what was believed about it."""
        row = {prompt_id: i for i, prompt_id in enumerate(allocation.prompt_ids)}
        weights, beliefs = allocation.weights.tolist(), allocation.beliefs.tolist()
        return [
            RolloutGroup(
                *self.known[prompt_id],
                rollouts=sorted(found, key=lambda rollout: rollout.index),
                weight=weights[row[prompt_id]],
                belief=(beliefs[row[prompt_id]][0], beliefs[row[prompt_id]][1]),
            )
            for prompt_id, found in self.rollouts.items()
            if found
        ]

    def cancel(self) -> None:
        """Cancel what is still under way."""
        for task in self.pending | ({self.upcoming} if self.upcoming else set()):
            task.cancel()

    def _submit(self, session: Session, taken: list[tuple[str, int]]) -> None:
        """Submit the tasks of what the plan took; those of prompts whose conversation cannot begin fail at once.

        Those that an opponent opens are begun here; the policy's turns follow as tasks of their own.
        """
        self.ordered += sum(wanted for _, wanted in taken)
        tasks = self.collector._make_tasks(taken, self.ordered, self.known, self.drawn, self.draw) if taken else []
        ready = []
        for task in tasks:
            talks = self.conversations
            if talks and task.prompt_id in talks.broken:
                self.pending.add(self._start(_failed(task, talks.broken[task.prompt_id])))
            elif talks and talks.waits(task.prompt_id):
                self.pending.add(self._start(talks.begin(task, lambda: next(self.collector._ids))))
            else:
                ready.append(task)
        session.submit(ready)

    def _take_in(self, session: Session, result: TurnResult) -> None:
        """Submit the next turns, have ended rollouts scored, and give the plan what has come back."""
        if result.tasks:
            session.submit(result.tasks)
        if result.ended:
            prompt = self.known[result.ended[0][0].prompt_id].prompt
            self.pending.add(self._start(self.collector._score(prompt, result.ended)))
        for failure in result.failures:
            self.plan.lost(failure.prompt_id, failure.rollouts)
        self.failures += result.failures
        if scored := result.scored:
            # Beliefs count rewards in [0, 1].
            rewards = [min(1.0, max(0.0, rollout.reward or 0.0)) for rollout in scored]
            tokens = float(sum(r.sampled_tokens + sum(p.sampled_tokens for p in r.partners) for r in scored))
            try:
                self.plan.observe(scored[0].prompt_id, rewards, tokens)
            except ValueError as error:
                raise KrayError(f"the plan cannot use a reward: {error}") from error
            self.rollouts[scored[0].prompt_id] += scored

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task:
        """Start the work as a task that is put in `ended` when it ends."""
        task = asyncio.create_task(work)
        task.add_done_callback(self.ended.put_nowait)
        return task


async def _failed(task: RolloutTask, why: str) -> TurnResult:
    """Return the result of a task that cannot be done."""
    return TurnResult(failures=[Failure(task.prompt_id, task.rollouts, why)])
