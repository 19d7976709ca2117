"""Multi-turn rollouts: the policy's turns and, between them, the observations of an environment.

Invariants
- The tokens of a conversation are those that were sampled and those of the observations between them, in order; sampled
  tokens are never encoded again. The prompt of turn t + 1 is the prompt of turn t, what was sampled in it, and its
  observation.
- Every rollout of an outcome either continues in exactly one new task, has ended, or has failed with a reason.
- Turn 0 is sampled as without an environment. Turn t of rollout i is sampled with a seed made of the group's seed, t and i.

Engines are unaware of conversations: a turn is a rollout task like any other, so a lost engine costs a turn. Environments
run in processes of their own (kray/environments/workers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kray.config.prompts_schema import SourceConfig
from kray.environments.turns import Turn
from kray.environments.workers import ENVIRONMENT, EnvironmentWorkers
from kray.errors import DataError
from kray.prompts.tokenize import encode_answer, encode_opening
from kray.records import EncodedPrompt, Rollout, RolloutTask, derive_seed
from kray.rollout.outcome import Failure, TaskOutcome


@dataclass(slots=True)
class TurnResult:
    """What follows from the outcome of a task.

    Attributes:
        tasks: Tasks for the next turns of conversations that continue.
        ended: Rollouts that have ended, each with the text to score; the environment may have set their reward.
        scored: Rollouts with rewards.
        failures: Rollouts that failed.
    """

    tasks: list[RolloutTask] = field(default_factory=list)
    ended: list[tuple[Rollout, str]] = field(default_factory=list)
    scored: list[Rollout] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class Conversation:
    """One multi-turn rollout.

    Attributes:
        task: The task of its first turn.
        index: The rollout's index in its group.
        state: The environment's, before the turn that is being generated; see kray/environments/turns.py.
        turns: Turns of the policy so far.
        size: Tokens so far, sampled and observed.
        action: Text of the latest turn.
        finish_reason: Why the latest turn ended.
    """

    def __init__(self, task: RolloutTask, index: int, state: Any):
        self.task, self.index, self.state = task, index, state
        self.turns = 0
        self.size = 0
        self.action = ""
        self.finish_reason = ""
        # (tokens, logprobs, whether they were sampled) of each segment.
        self._segments: list[tuple[np.ndarray, np.ndarray, bool]] = []
        self._versions: list[tuple[int, int, int]] = []

    @property
    def remaining_tokens(self) -> int:
        """Tokens that may still follow."""
        return self.task.sampling.max_tokens - self.size

    @property
    def last_token(self) -> int:
        """The last token of the latest turn; -1 when the turn is empty."""
        return next((int(token) for token in self._segments[-1][0][-1:]), -1)

    def add_action(self, turn: Rollout, text: str) -> None:
        """Append a turn of the policy and its decoded text."""
        self._versions += [(version, self.size + a, self.size + b) for version, a, b in turn.policy_versions]
        self._append(turn.tokens, turn.logprobs, True)
        self.turns, self.action, self.finish_reason = self.turns + 1, text, turn.finish_reason

    def add_observation(self, tokens: Sequence[int], state: Any) -> None:
        """Append the tokens of an observation and replace the environment's state."""
        observed = np.array(tokens, dtype=np.int32)
        self._append(observed, np.zeros(len(observed), np.float32), False)
        self.state = state

    def next_task(self, task_id: int) -> RolloutTask:
        """Return the task that generates the next turn."""
        return replace(
            self.task,
            id=task_id,
            prompt_tokens=(*self.task.prompt_tokens, *self._joined(0).tolist()),
            rollouts=1,
            first_index=self.index,
            seed=derive_seed(self.task.seed, "turn", self.turns, self.index),
            sampling=replace(self.task.sampling, max_tokens=self.remaining_tokens),
            expected_tokens=min(self.remaining_tokens, max(1.0, self.task.expected_tokens - self.size)),
        )

    def rollout(self, decode: Callable[[Sequence[int]], str]) -> Rollout:
        """Return the whole conversation as one rollout; observed tokens have logprob 0 and `sampled` False."""
        tokens = self._joined(0)
        return Rollout(
            self.task.prompt_id,
            self.index,
            tokens,
            self._joined(1),
            self.finish_reason,
            tuple(self._versions),
            text=decode(tokens.tolist()),
            sampled=np.concatenate([np.full(len(segment[0]), segment[2]) for segment in self._segments]),
            turns=self.turns,
        )

    def _append(self, tokens: np.ndarray, logprobs: np.ndarray, sampled: bool) -> None:
        self._segments.append((tokens, logprobs, sampled))
        self.size += len(tokens)

    def _joined(self, which: int) -> np.ndarray:
        return np.concatenate([segment[which] for segment in self._segments])


class ConversationRunner:
    """Starts conversations with the environment of these workers."""

    def __init__(
        self,
        workers: EnvironmentWorkers,
        tokenizer: Any,
        sources: Mapping[int | str, SourceConfig],
        max_prompt_tokens: int,
    ):
        """Create a runner; nothing is started.

        Args:
            workers: Processes of the environment.
            tokenizer: The policy's tokenizer.
            sources: Prompt sources, by the name of their test set where there are several, else by the priority of their
                rollouts.
            max_prompt_tokens: Longest prompt with its opening observation (prompts.max_tokens).
        """
        self.workers, self.tokenizer, self.sources = workers, tokenizer, sources
        self.max_turns, self.max_prompt_tokens = workers.environment.max_turns, max_prompt_tokens

    async def open(self, prompts: Sequence[EncodedPrompt], seeds: Callable[[str], int], priority: int) -> Conversations:
        """Reset one environment for each prompt; the prompt's rollouts start from copies of it.

        Args:
            prompts: Prompts of the collection.
            seeds: Maps a prompt's id to its group's seed.
            priority: Priority of the rollout tasks, which names the source of prompts without a test set.
        """
        turns = await self.workers.begin([(prompt, derive_seed(seeds(prompt.id), "reset")) for prompt, _ in prompts])
        opened = Conversations(self)
        for (prompt, tokens), turn in zip(prompts, turns, strict=True):
            source = self.sources[prompt.metadata.get("set", priority)]
            opened.variables[prompt.id] = source.chat_template_kwargs
            try:
                if isinstance(turn, str):
                    raise DataError(turn)
                if turn.observation:
                    tokens = encode_opening(prompt, turn.observation, self.tokenizer, source)
                if len(tokens) > self.max_prompt_tokens:
                    limit = f"prompts.max_tokens is {self.max_prompt_tokens}"
                    raise DataError(f"with its first observation the prompt is {len(tokens)} tokens long, {limit}")
                opened.states[prompt.id] = turn.state
            except DataError as error:
                opened.broken[prompt.id] = f"{ENVIRONMENT}{str(error).removeprefix(ENVIRONMENT)}"
            opened.prompts.append(EncodedPrompt(prompt, tokens))
        return opened

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens without special tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


class Conversations:
    """All conversations of one collection.

    Attributes:
        runner: What they run on.
        prompts: The prompts, each with its opening observation.
        states: Prompt id -> its environment's state before the first turn.
        broken: Prompt id -> why its environment could not be reset.
        variables: Prompt id -> variables of the chat template.
    """

    def __init__(self, runner: ConversationRunner):
        self.runner = runner
        self.prompts: list[EncodedPrompt] = []
        self.states: dict[str, Any] = {}
        self.broken: dict[str, str] = {}
        self.variables: dict[str, Mapping[str, Any]] = {}
        # Task id of the turn that is being generated -> its conversation, from the second turn on.
        self._continued: dict[int, Conversation] = {}

    def waits(self, prompt_id: str) -> bool:
        """Return False: the policy always acts first (see kray/rollout/episodes.py)."""
        return False

    async def begin(self, task: RolloutTask, new_task_id: Callable[[], int]) -> TurnResult:
        """Not called, since no prompt waits."""
        raise AssertionError(f"prompt {task.prompt_id} does not wait")

    async def process_outcome(self, outcome: TaskOutcome, new_task_id: Callable[[], int]) -> TurnResult:
        """Pass finished turns to the environment and continue or end their conversations.

        Args:
            outcome: A task that ended: the first turn of several conversations, or a later turn of one.
            new_task_id: Returns an unused task id.
        """
        task, result = outcome.task, TurnResult()
        known = self._continued.pop(task.id, None)
        if outcome.failure:
            result.failures.append(Failure(task.prompt_id, task.rollouts, outcome.failure, outcome.tries))
            self._release([known] if known else [])
            return result
        conversations = [
            known or Conversation(task, turn.index, self.states[task.prompt_id]) for turn in outcome.rollouts
        ]
        moves = []
        for each, turn in zip(conversations, outcome.rollouts, strict=True):
            each.add_action(turn, self.runner.decode(turn.tokens.tolist()))
            is_last = each.turns >= self.runner.max_turns or each.remaining_tokens < 1
            moves.append((each.state, each.action, is_last))
        out_of_tokens = []
        for each, answer in zip(conversations, await self.runner.workers.step(moves), strict=True):
            if isinstance(answer, str) or answer.ended:
                self._end(each, answer, result)
            elif not self._continue(each, answer, result, new_task_id):
                out_of_tokens.append(each)
        finished = await self.runner.workers.finish([each.state for each in out_of_tokens])
        for each, answer in zip(out_of_tokens, finished, strict=True):
            self._end(each, answer, result)
        return result

    def close(self) -> None:
        """Drop the conversations that have not ended."""
        self._release(list(self._continued.values()))
        self._continued.clear()

    def _release(self, conversations: Sequence[Conversation]) -> None:
        self.runner.workers.release([each.state for each in conversations])

    def _continue(
        self, conversation: Conversation, answer: Turn, result: TurnResult, new_task_id: Callable[[], int]
    ) -> bool:
        """Append the observation and plan the next turn; False when no token would be left for it."""
        task, last = conversation.task, conversation.last_token
        closed_by = last if last in task.sampling.stop_token_ids else -1
        variables = self.variables[task.prompt_id]
        try:
            tokens = encode_answer(answer.observation, closed_by, self.runner.tokenizer, task.prompt_id, variables)
        except DataError as error:
            result.failures.append(Failure(task.prompt_id, 1, f"{ENVIRONMENT}{error}"))
            conversation.state = answer.state
            self._release([conversation])
            return True
        if len(tokens) >= conversation.remaining_tokens:
            conversation.state, conversation.finish_reason = answer.state, "length"
            return False
        conversation.add_observation(tokens, answer.state)
        following = conversation.next_task(new_task_id())
        self._continued[following.id] = conversation
        result.tasks.append(following)
        return True

    def _end(self, conversation: Conversation, answer: Turn | str, result: TurnResult) -> None:
        if isinstance(answer, str):
            result.failures.append(Failure(conversation.task.prompt_id, 1, answer))
            return
        rollout = conversation.rollout(self.runner.decode)
        rollout.reward, rollout.reward_detail = answer.reward, answer.detail
        result.ended.append((rollout, conversation.action))
