"""The interface of environments: they reply to the policy's turns until they are done, and may reward the whole rollout.

One object is the environment of one rollout. Between two turns it is pickled and any process may continue it, so it must be
plain data (open files, sockets and threads belong into `step`): a worker process that exits loses nothing, and one that hangs
loses one rollout. All rollouts of a prompt's group start from copies of one `reset`, so that they are comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kray.records import Prompt
from kray.rewards.verifiers import Reward

# Text is appended as it is, inside the policy's own turn. Messages ({"role": ..., "content": ...}) end the policy's turn, go
# through the tokenizer's chat template and open the next turn.
Observation = str | Sequence[Mapping[str, str]]


class Environment(Protocol):
    """The methods of an environment.

    It is created with environment.options as keyword arguments. An exception that a method raises fails the rollout as a
    data failure of its prompt.

    Attributes:
        stops: Texts that end the policy's turn, besides its end-of-sequence token.
        gives_reward: `reward` never returns None, so that prompts need no answer.
    """

    stops: tuple[str, ...] = ()
    gives_reward: bool = False

    def reset(self, prompt: Prompt, seed: int) -> Observation:
        """Start a rollout.

        Args:
            prompt: The prompt of the group.
            seed: The same for all rollouts of the group.

        Returns:
            What the policy reads after the prompt and before its first turn; "" for nothing.
        """

    def step(self, action: str) -> tuple[Observation, bool]:
        """Reply to a turn of the policy.

        Also called for the last turn that environment.max_turns or the token limit allows, whatever is returned then.

        Args:
            action: Text of the turn.

        Returns:
            The observation, and whether the rollout is over; the observation of the last turn is not used.
        """

    def reward(self) -> float | Reward | None:
        """Return the reward of the rollout.

        Called once, at the end.

        Returns:
            A reward in [0, 1]; None: the prompt's verifier scores the policy's last turn.
        """
