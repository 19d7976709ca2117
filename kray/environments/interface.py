"""What an environment is: it answers what the policy writes, until it is done, and may say what all of it was worth.

One object is one conversation. Between two turns it is pickled, and any process may go on with it: so it must be plain
data (open files, sockets and threads belong into `step`), a process that dies costs nothing, and one that hangs costs
one conversation. All conversations of a prompt's group begin from one `reset`, as copies: what is compared begins alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kray.records import Prompt
from kray.rewards.verifiers import Reward

# Text is appended to the conversation as it is, inside the policy's own turn. Messages ({"role": ..., "content": ...})
# close the policy's turn, go through the tokenizer's chat template and open the next.
Observation = str | Sequence[Mapping[str, str]]


class Environment(Protocol):
    """Made with environment.options as keyword arguments. Whatever a method raises is a data failure of the prompt."""

    stops: tuple[str, ...] = ()  # texts that end the policy's turn, beside its end of sequence

    def reset(self, prompt: Prompt, seed: int) -> Observation:
        """Begins. What the policy is told after the prompt and before its first turn: "" where the prompt says all."""

    def step(self, action: str) -> tuple[Observation, bool]:
        """(answer to the policy's turn, whether the conversation is over). The answer that ends it is not looked at.

        Also called for the last turn that environment.max_turns or the token limit allow, whatever it then answers.
        """

    def reward(self) -> float | Reward | None:
        """In [0, 1], asked once at the end. None: the prompt's verifier judges the policy's last turn."""
