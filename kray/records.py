"""The records that all packages share: plain data, numpy only, cheap to pickle.

"Task" alone means a Ray task elsewhere in the world; here the thing learned from is a Prompt, and a RolloutTask is the
order "generate k rollouts of this prompt". Ids are explicit and never derived from a prompt's text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


def derive_seed(*parts: object) -> int:
    """Derive a 62-bit seed from (run seed, step, prompt id, ...); equal parts give equal seeds on every machine.

    Returns:
        62 bits, so that an engine can add a rollout's index without leaving int64; equal parts give equal seeds on every
        machine.
    """
    text = "\x1f".join(str(part) for part in parts)
    # An id of a service or a dataset may hold half of a character.
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy is asked, and what is needed to judge its response. Exactly one of text and messages is set.

    `columns` are further fields of its row, which reward functions get by name: text, numbers, lists and mappings.
    """

    id: str
    answer: str
    verifier: str
    source: str
    text: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None  # chat messages: {"role": ..., "content": ...}
    metadata: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)


class EncodedPrompt(NamedTuple):
    """A prompt with its tokens as the policy reads them."""

    prompt: Prompt
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()  # texts that end a response as these tokens do; they stay in it


@dataclass(frozen=True, slots=True)
class RolloutTask:
    """The order to generate `rollouts` rollouts of one prompt.

    Rollout i of the group (first_index <= i < first_index + rollouts) is sampled with seed + i, so a group's rollouts do
    not depend on how it was split into tasks.
    """

    id: int
    prompt_id: str
    prompt_tokens: tuple[int, ...]
    rollouts: int
    first_index: int
    seed: int
    policy_version: int
    sampling: Sampling
    timeout_s: float
    expected_tokens: float = 0.0  # expected response tokens of one rollout, for scheduling


@dataclass(slots=True)
class Rollout:
    """One sampled response, or a conversation: what the policy sampled, and between it what an environment said.

    tokens (T,) int32 without the prompt; logprobs (T,) float32 of the tokens as sampled, 0 where the environment spoke;
    sampled (T,) bool: which tokens the policy sampled, None: all of them, and there was no environment.
    """

    prompt_id: str
    index: int
    tokens: np.ndarray
    logprobs: np.ndarray
    finish_reason: str  # "stop": ended by itself; "length": cut at max_tokens
    policy_versions: tuple[tuple[int, int, int], ...]  # (version, first token, end token), half-open spans
    text: str = ""
    reward: float | None = None
    reward_detail: str = ""
    reward_parts: Mapping[str, float] = field(default_factory=dict)  # value of each of reward.functions that applies
    reward_late: bool = False  # judging exceeded its deadline, which no text says: a policy may write any
    sampled: np.ndarray | None = None
    turns: int = 1
    # Of an episode with roles: the role that this is the view of, the prompt as this role read it, where that differs
    # between the rollouts of a group, and the views of the other roles that learn.
    role: str = ""
    prompt_tokens: tuple[int, ...] = ()
    partners: tuple[Rollout, ...] = ()

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the policy sampled: those that cost generation, and the only ones that are learned from."""
        return len(self.tokens) if self.sampled is None else int(self.sampled.sum())


@dataclass(slots=True)
class RolloutGroup:
    """All rollouts of one prompt in one step, ordered by index.

    Attributes:
        prompt: What was asked.
        prompt_tokens: The prompt as the policy reads it.
        rollouts: Its rollouts.
        weight: The planner's weight of the prompt in the loss; with 0 the group is left out of the loss and of its
            denominator.
        belief: (alpha, beta) of the Beta distribution of the prompt's success rate before the labels of this step, the
            baseline of train.baseline belief; (0, 0): nothing is known.
        role: Of an environment with roles, the one whose views these rollouts are.
    """

    prompt: Prompt
    prompt_tokens: tuple[int, ...]
    rollouts: list[Rollout]
    weight: float
    belief: tuple[float, float] = (0.0, 0.0)
    role: str = ""

    @property
    def rewards(self) -> np.ndarray:
        """(N,) float64; NaN where a rollout has not been scored."""
        return np.array([np.nan if r.reward is None else r.reward for r in self.rollouts], dtype=np.float64)

    @property
    def mixed(self) -> bool:
        """Whether the rewards differ: with train.baseline group only then does the group carry a gradient."""
        rewards = self.rewards
        return len(rewards) > 1 and bool((rewards != rewards[0]).any())

    @property
    def tokens(self) -> int:
        """Sampled tokens of all rollouts."""
        return sum(r.sampled_tokens for r in self.rollouts)


@dataclass(slots=True)
class Allocation:
    """A plan for one step, aligned by position over M prompts.

    Attributes:
        prompt_ids: M of them.
        budgets: (M,) int64 rollouts.
        weights: (M,) float64 in the loss (default: the budgets, what token_mean does by itself).
        expected_success: (M,) float64 in [0, 1], NaN where nothing is known.
        expected_value: (M,) float64 of the budget.
        beliefs: (M, 2) float64 alpha and beta of each prompt's success rate before the labels of the step; 0 where nothing
            is known.
    """

    prompt_ids: list[str]
    budgets: np.ndarray
    weights: np.ndarray
    expected_success: np.ndarray
    expected_value: np.ndarray
    beliefs: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))

    def __post_init__(self) -> None:
        if not len(self.beliefs):
            self.beliefs = np.zeros((len(self.prompt_ids), 2))

    def admitted(self) -> Allocation:
        """Return the plan without the candidates that got no rollouts."""
        on = self.budgets > 0
        if on.all():
            return self
        return Allocation(
            [prompt_id for prompt_id, has in zip(self.prompt_ids, on, strict=True) if has],
            budgets=self.budgets[on],
            weights=self.weights[on],
            expected_success=self.expected_success[on],
            expected_value=self.expected_value[on],
            beliefs=self.beliefs[on],
        )
