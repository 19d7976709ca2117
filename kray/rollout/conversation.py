"""Rollouts that are conversations: the policy's turns, and between them what an environment answers.

Promises
- A conversation's tokens are those that were sampled and those that the engine was given between them, in that order: no
  sampled token is encoded again. The prompt of turn t + 1 is the prompt of turn t, what was sampled then, and the answer.
- Every rollout of an outcome either goes on in one task, or has ended, or has failed with a reason.
- Turn 0 is sampled as without an environment. Turn t of rollout i is sampled with a seed from the group's seed, t and i.
Engines know nothing of it: a turn is a rollout task like any other, and one that dies costs a turn. The environment's
answers come from processes of their own (kray/environments/workers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kray.config.schema import SourceConfig
from kray.environments.turns import Turn
from kray.environments.workers import ENVIRONMENT, EnvironmentWorkers
from kray.errors import DataError
from kray.prompts.tokenize import encode_answer, encode_opening
from kray.records import EncodedPrompt, Rollout, RolloutTask, derive_seed
from kray.rollout.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Failure:
    """A data failure: rollouts of a prompt that could not be had, or not be judged."""

    prompt_id: str
    rollouts: int
    why: str
    tries: int = 1  # that were made to have them


@dataclass(slots=True)
class TurnResult:
    """What came of an outcome. ended: rollouts with the text that is to be judged; a reward may be there already."""

    tasks: list[RolloutTask] = field(default_factory=list)
    ended: list[tuple[Rollout, str]] = field(default_factory=list)
    scored: list[Rollout] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class Conversation:
    """One rollout, turn by turn. task: of its first turn; state: the environment before the turn that is under way."""

    def __init__(self, task: RolloutTask, index: int, state: bytes):
        self.task, self.index, self.state = task, index, state
        self.turns = 0
        self.size = 0  # tokens so far
        self.action = ""  # text of the latest turn
        self.reason = ""  # why that turn ended
        self._parts: list[tuple[np.ndarray, np.ndarray, bool]] = []  # tokens, logprobs, whether they were sampled
        self._versions: list[tuple[int, int, int]] = []

    @property
    def left(self) -> int:
        """Tokens that may still follow."""
        return self.task.sampling.max_tokens - self.size

    @property
    def last_token(self) -> int:
        """Of the latest turn; -1 when it has none."""
        return next((int(token) for token in self._parts[-1][0][-1:]), -1)

    def acted(self, turn: Rollout, text: str) -> None:
        """The policy has spoken."""
        self._versions += [(version, self.size + a, self.size + b) for version, a, b in turn.policy_versions]
        self._append(turn.tokens, turn.logprobs, True)
        self.turns, self.action, self.reason = self.turns + 1, text, turn.finish_reason

    def answered(self, tokens: Sequence[int], state: bytes) -> None:
        """The environment has spoken."""
        told = np.array(tokens, dtype=np.int32)
        self._append(told, np.zeros(len(told), np.float32), False)
        self.state = state

    def next_task(self, task_id: int) -> RolloutTask:
        """The order for the next turn."""
        return replace(
            self.task,
            id=task_id,
            prompt_tokens=(*self.task.prompt_tokens, *self._joined(0).tolist()),
            rollouts=1,
            first_index=self.index,
            seed=derive_seed(self.task.seed, "turn", self.turns, self.index),
            sampling=replace(self.task.sampling, max_tokens=self.left),
            expected_tokens=min(self.left, max(1.0, self.task.expected_tokens - self.size)),
        )

    def rollout(self, decode: Callable[[Sequence[int]], str]) -> Rollout:
        """All of it as one rollout."""
        tokens = self._joined(0)
        return Rollout(
            self.task.prompt_id,
            self.index,
            tokens,
            self._joined(1),
            self.reason,
            tuple(self._versions),
            text=decode(tokens.tolist()),
            sampled=np.concatenate([np.full(len(part[0]), part[2]) for part in self._parts]),
            turns=self.turns,
        )

    def _append(self, tokens: np.ndarray, logprobs: np.ndarray, sampled: bool) -> None:
        self._parts.append((tokens, logprobs, sampled))
        self.size += len(tokens)

    def _joined(self, which: int) -> np.ndarray:
        return np.concatenate([part[which] for part in self._parts])


class Host:
    """Holds conversations with the environment on this stage.

    sources: of prompts, by the name of their test set where there are several, else by the priority of their rollouts.
    """

    def __init__(
        self,
        stage: EnvironmentWorkers,
        tokenizer: Any,
        sources: Mapping[int | str, SourceConfig],
        max_prompt_tokens: int,
    ):
        self.stage, self.tokenizer, self.sources = stage, tokenizer, sources
        self.max_turns, self.max_prompt_tokens = stage.environment.max_turns, max_prompt_tokens

    async def open(self, prompts: Sequence[EncodedPrompt], seeds: Callable[[str], int], priority: int) -> Conversations:
        """Begins an environment for each prompt, of which its rollouts get copies."""
        turns = await self.stage.begin([(prompt, derive_seed(seeds(prompt.id), "reset")) for prompt, _ in prompts])
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
                    raise DataError(f"what it says first makes the prompt {len(tokens)} tokens long, {limit}")
                opened.states[prompt.id] = turn.state
            except DataError as error:
                opened.broken[prompt.id] = f"{ENVIRONMENT}{str(error).removeprefix(ENVIRONMENT)}"
            opened.prompts.append(EncodedPrompt(prompt, tokens))
        return opened

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


class Conversations:
    """Those of one collection. prompts: with what the environment says first. broken: prompts that have none, and why."""

    def __init__(self, host: Host):
        self.host = host
        self.prompts: list[EncodedPrompt] = []
        self.states: dict[str, bytes] = {}  # of each prompt's environment before the first turn
        self.broken: dict[str, str] = {}
        self.variables: dict[str, Mapping[str, Any]] = {}  # of the chat template, for each prompt
        self._open: dict[int, Conversation] = {}  # by the task that is under way

    async def hear(self, outcome: Outcome, task_id: Callable[[], int]) -> TurnResult:
        """A turn has been sampled, of several conversations if it is their first: what the environment makes of it."""
        task, heard = outcome.task, TurnResult()
        known = self._open.pop(task.id, None)
        if outcome.failure:
            heard.failures.append(Failure(task.prompt_id, task.rollouts, outcome.failure, outcome.tries))
            return heard
        talks = [known or Conversation(task, turn.index, self.states[task.prompt_id]) for turn in outcome.rollouts]
        moves = []
        for talk, turn in zip(talks, outcome.rollouts, strict=True):
            talk.acted(turn, self.host.decode(turn.tokens.tolist()))
            moves.append((talk.state, talk.action, talk.turns >= self.host.max_turns or talk.left < 1))
        full = []
        for talk, answer in zip(talks, await self.host.stage.step(moves), strict=True):
            if isinstance(answer, str) or answer.ended:
                self._end(talk, answer, heard)
            elif not self._go_on(talk, answer, heard, task_id):
                full.append(talk)
        for talk, answer in zip(full, await self.host.stage.finish([talk.state for talk in full]), strict=True):
            self._end(talk, answer, heard)
        return heard

    def _go_on(self, talk: Conversation, answer: Turn, heard: TurnResult, task_id: Callable[[], int]) -> bool:
        """Gives the answer to the policy; false when there is no room for it and one token more."""
        itself = talk.last_token if talk.last_token in talk.task.sampling.stop_token_ids else -1
        prompt_id = talk.task.prompt_id
        variables = self.variables[prompt_id]
        try:
            tokens = encode_answer(answer.observation, itself, self.host.tokenizer, prompt_id, variables)
        except DataError as error:
            heard.failures.append(Failure(talk.task.prompt_id, 1, f"{ENVIRONMENT}{error}"))
            return True
        if len(tokens) >= talk.left:
            talk.state, talk.reason = answer.state, "length"
            return False
        talk.answered(tokens, answer.state)
        order = talk.next_task(task_id())
        self._open[order.id] = talk
        heard.tasks.append(order)
        return True

    def _end(self, talk: Conversation, answer: Turn | str, heard: TurnResult) -> None:
        if isinstance(answer, str):
            heard.failures.append(Failure(talk.task.prompt_id, 1, answer))
            return
        rollout = talk.rollout(self.host.decode)
        rollout.reward, rollout.reward_detail = answer.reward, answer.detail
        heard.ended.append((rollout, talk.action))
