"""An episode of an environment with roles, as each role reads and writes it.

Invariants
- A role's view is the prompt, what the environment let this role read, and its own turns; sampled tokens are never encoded
  again. The prompt of its turn t + 1 is the prompt of its turn t, what was sampled in it, and what the role has read since.
- What a role reads before its first turn belongs to its prompt. Where episodes of a group differ in it (the second player of
  a game reads the first move), the group's prompt is what they have in common, and the rest stands at the beginning of each
  response as tokens that were not sampled.
- Turn t of a role in episode i is sampled with a seed made of the group's seed, the role, t and i; the turn that opens the
  episode as without roles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from kray.config.prompts_schema import SourceConfig
from kray.environments.role_turns import RoleTurn
from kray.environments.turns import PlainObservation
from kray.errors import DataError
from kray.prompts.tokenize import decoded, encode_answer, encode_opening, messages_of, with_opening
from kray.records import EncodedPrompt, Rollout, RolloutGroup, RolloutTask, derive_seed
from kray.rollout.conversation import Conversation


@dataclass(slots=True)
class View:
    """What one role has read and written.

    Attributes:
        unread: What it reads before its next turn.
        turns: Its turns so far.
        conversation: Its tokens, where a policy plays it and has had a turn.
        history: What it read and wrote so far, in turns, where an endpoint plays it.
    """

    unread: list[PlainObservation] = field(default_factory=list)
    turns: int = 0
    conversation: Conversation | None = None
    history: list[tuple[PlainObservation, str]] = field(default_factory=list)

    def read(self) -> PlainObservation:
        """Return what is unread as one observation, which is then read.

        Raises:
            DataError: It is text as well as messages.
        """
        unread, self.unread = self.unread, []
        return merged(unread)


@dataclass(frozen=True, slots=True)
class Opening:
    """What all episodes of a prompt have in common.

    Attributes:
        prompt: The prompt and its tokens as they are without anything that a role reads.
        source: Its source.
        turn: The environment after its reset.
    """

    prompt: EncodedPrompt
    source: SourceConfig
    turn: RoleTurn

    def read_by(self, role: str) -> PlainObservation:
        """Return what a role reads of the reset."""
        return merged([seen for reader, seen in self.turn.observed if reader == role])


@dataclass(frozen=True, slots=True)
class Encoder:
    """How views become tokens.

    Attributes:
        tokenizer: The policy's tokenizer.
        max_prompt_tokens: Longest prompt with what is read before the first turn (prompts.max_tokens).
    """

    tokenizer: Any
    max_prompt_tokens: int

    def opening(self, opening: Opening, read: PlainObservation) -> tuple[int, ...]:
        """Return the tokens that a role's first turn follows.

        Raises:
            DataError: They cannot be encoded, or are too many.
        """
        tokens = opening.prompt.tokens
        if read:
            tokens = encode_opening(opening.prompt.prompt, read, self.tokenizer, opening.source)
        if len(tokens) > self.max_prompt_tokens:
            limit = f"prompts.max_tokens is {self.max_prompt_tokens}"
            raise DataError(f"with its first observation the prompt is {len(tokens)} tokens long, {limit}")
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens without special tokens."""
        return decoded(tokens, self.tokenizer)


class Episode:
    """One episode.

    Attributes:
        task: The task of its group.
        index: Its index in the group.
        opening: What it has in common with the group's other episodes.
        state: The pickled environment.
        role: Who acts next.
        views: Role -> its view.
    """

    def __init__(self, task: RolloutTask, index: int, opening: Opening, roles: Sequence[str]):
        self.task, self.index, self.opening = task, index, opening
        self.state, self.role = b"", ""
        self.views = {role: View() for role in roles}

    @property
    def seed(self) -> int:
        """Of the environment's own players."""
        return derive_seed(self.task.seed, "episode", self.index)

    def turn_seed(self, role: str) -> int:
        """Return the seed of a role's next turn, for players that are asked for text."""
        return derive_seed(self.task.seed, "role", role, self.views[role].turns, self.index)

    def take(self, turn: RoleTurn) -> None:
        """Take over what the environment returned."""
        self.state, self.role = turn.state, turn.role
        for role, observation in turn.observed:
            self.views[role].unread.append(observation)

    def open_turn(self) -> None:
        """Note that the turn of the group's task is this episode's first, of the role that acts next."""
        view = self.views[self.role]
        view.unread.clear()
        view.conversation = Conversation(self.task, self.index, b"")

    def next_task(self, task_id: int, encoder: Encoder) -> RolloutTask | None:
        """Return the task that generates the next turn of the role that acts; None when no token would be left for it.

        Raises:
            DataError: What the role reads cannot be encoded.
        """
        view = self.views[self.role]
        read = view.read()
        if view.conversation is None:
            tokens, seed = encoder.opening(self.opening, read), derive_seed(self.task.seed, "role", self.role)
            first = replace(self.task, prompt_tokens=tokens, rollouts=1, first_index=self.index, seed=seed)
            view.conversation = Conversation(first, self.index, b"")
            return replace(first, id=task_id)
        last, task = view.conversation.last_token, self.task
        closed_by = last if last in task.sampling.stop_token_ids else -1
        variables = self.opening.source.chat_template_kwargs
        observed = encode_answer(read, closed_by, encoder.tokenizer, task.prompt_id, variables)
        if len(observed) >= view.conversation.remaining_tokens:
            view.conversation.finish_reason = "length"
            return None
        if observed:
            view.conversation.add_observation(observed, b"")
        return view.conversation.next_task(task_id)

    def add_turn(self, turn: Rollout, encoder: Encoder) -> str:
        """Append a sampled turn to the view of the role that acts and return its text."""
        view = self.views[self.role]
        assert view.conversation is not None
        text = encoder.decode(turn.tokens.tolist())
        view.conversation.add_action(turn, text)
        view.turns += 1
        return text

    def messages(self) -> list[dict[str, str]]:
        """Return the view of the role that acts as chat messages, in which its own turns are the assistant's.

        Raises:
            DataError: What it has read is text as well as messages.
        """
        view = self.views[self.role]
        turns = [*view.history, (merged(view.unread), "")]
        opened = with_opening(self.opening.prompt.prompt, turns[0][0], self.opening.source)
        messages = [dict(message) for message in messages_of(opened, self.opening.source)]
        for (_, action), (read, _) in pairwise(turns):
            messages.append({"role": "assistant", "content": action})
            messages += [{"role": "user", "content": read}] if isinstance(read, str) else [dict(each) for each in read]
        return messages

    def add_text(self, action: str) -> None:
        """Append a turn that is known as text alone to the view of the role that acts."""
        view = self.views[self.role]
        view.history.append((view.read(), action))
        view.turns += 1

    def rollout(self, roles: Sequence[str], turn: RoleTurn, encoder: Encoder) -> Rollout:
        """Return the ended episode as a rollout of the first of these roles, with those of the others as its partners.

        Args:
            roles: The roles that learn.
            turn: The end of the episode, with the rewards.
            encoder: Of the policy's tokens.

        Raises:
            DataError: What a role read that never acted cannot be encoded.
        """
        lead, *others = (self._view_of(role, turn.rewards[role], encoder) for role in roles)
        lead.partners = tuple(others)
        return lead

    def _view_of(self, role: str, reward: tuple[float, str], encoder: Encoder) -> Rollout:
        view = self.views[role]
        if view.conversation is not None and view.turns:
            rollout = view.conversation.rollout(encoder.decode)
            rollout.prompt_tokens = view.conversation.task.prompt_tokens
        else:
            # A role that never acted: nothing to learn, but its reward counts in the mean of its role.
            none, no_tokens, no_logprobs = np.zeros(0, bool), np.zeros(0, np.int32), np.zeros(0, np.float32)
            rollout = Rollout(
                self.task.prompt_id, self.index, no_tokens, no_logprobs, "stop", (), sampled=none, turns=0
            )
            rollout.prompt_tokens = encoder.opening(self.opening, view.read())
        rollout.role = role
        rollout.reward, rollout.reward_detail = reward
        return rollout


def merged(unread: Sequence[PlainObservation]) -> PlainObservation:
    """Return several observations of a role as one; DataError where some are text and some messages."""
    texts = [seen for seen in unread if isinstance(seen, str)]
    messages = [message for seen in unread if not isinstance(seen, str) for message in seen]
    if any(texts) and messages:
        raise DataError("a role reads text and messages between two of its turns; an environment must use one of them")
    return tuple(messages) if messages else "".join(texts)


def split_roles(groups: Sequence[RolloutGroup]) -> tuple[list[RolloutGroup], list[RolloutGroup]]:
    """Return the groups of the role that is planned by, and those of the other roles, one for each prompt and role.

    Groups without roles are returned as they are.

    Args:
        groups: One for each prompt; their rollouts hold those of other roles as partners.
    """
    lead: list[RolloutGroup] = []
    others: list[RolloutGroup] = []
    for group in groups:
        if not group.rollouts[0].role:
            lead.append(group)
            continue
        lead.append(_of_role(group, group.rollouts))
        for views in zip(*(rollout.partners for rollout in group.rollouts), strict=True):
            others.append(_of_role(replace(group, belief=(0.0, 0.0)), list(views)))
    return lead, others


def _of_role(group: RolloutGroup, rollouts: list[Rollout]) -> RolloutGroup:
    """Return a group of these rollouts, whose prompt is what their prompts have in common."""
    prompts = [rollout.prompt_tokens for rollout in rollouts]
    common = _common_prefix(prompts)
    if not common:
        raise DataError(f"prompt {group.prompt.id}: the views of {rollouts[0].role} have no token in common")
    moved = [_with_rest(rollout, prompt[common:]) for rollout, prompt in zip(rollouts, prompts, strict=True)]
    return replace(group, prompt_tokens=prompts[0][:common], rollouts=moved, role=rollouts[0].role)


def _common_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens all prompts begin with."""
    low, high = min(prompts), max(prompts)
    same = (a == b for a, b in zip(low, high, strict=False))
    return next((i for i, equal in enumerate(same) if not equal), min(len(low), len(high)))


def _with_rest(rollout: Rollout, rest: Sequence[int]) -> Rollout:
    """Return a rollout that begins with the rest of its prompt, as tokens that were not sampled."""
    if not rest:
        return rollout
    assert rollout.sampled is not None
    return replace(
        rollout,
        tokens=np.concatenate([np.array(rest, np.int32), rollout.tokens]),
        logprobs=np.concatenate([np.zeros(len(rest), np.float32), rollout.logprobs]),
        sampled=np.concatenate([np.zeros(len(rest), bool), rollout.sampled]),
        policy_versions=tuple((v, a + len(rest), b + len(rest)) for v, a, b in rollout.policy_versions),
    )
