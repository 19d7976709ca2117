"""The interface of environments: they reply to the policy's turns until they are done, and may reward the whole rollout.

One object is the environment of one rollout. Between two turns it is pickled and any process may continue it, so it must be
plain data (open files, sockets and threads belong into `step`): a worker process that exits loses nothing, and one that hangs
loses one rollout. All rollouts of a prompt's group start from copies of one `reset`, so that they are comparable.

An environment with several roles, such as the two sides of a game, has the methods of RoleEnvironment instead.
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
        reward_range: The values of `reward` that stand for 0 and 1, such as (-1, 1).
    """

    stops: tuple[str, ...] = ()
    gives_reward: bool = False
    reward_range: tuple[float, float] = (0.0, 1.0)

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
            A reward in [0, 1], or in `reward_range`; None: the prompt's verifier scores the policy's last turn.
        """


class RoleEnvironment(Protocol):
    """The methods of an environment with several roles, such as the two players of a game.

    It is created and pickled as an Environment is. Every role has a view of its own: the prompt, followed by what `reset` and
    `step` let it read and by its own turns. An exception that a method raises fails the whole episode as a data failure. An
    illegal move should raise nothing, but end the episode with a low reward for the role that made it.

    Attributes:
        roles: The names of the roles, at least one; letters, digits, - and _.
        stops: Texts that end a turn, besides the policy's end-of-sequence token.
        players: Names of opponents that `play` can be.
        reward_range: The values of `rewards` that stand for 0 and 1, such as (-1, 1).
    """

    roles: tuple[str, ...]
    stops: tuple[str, ...] = ()
    players: tuple[str, ...] = ()
    reward_range: tuple[float, float] = (0.0, 1.0)

    def reset(self, prompt: Prompt, seed: int) -> tuple[str, Mapping[str, Observation]]:
        """Start an episode.

        Args:
            prompt: The starting position; its text comes first in every role's view.
            seed: The same for all episodes of the prompt in a step.

        Returns:
            The role that acts first, and what each role reads before its first turn; a role that is missing, or has "",
            reads the prompt alone.
        """

    def step(self, role: str, action: str) -> tuple[str, Mapping[str, Observation], bool]:
        """Take a role's turn.

        Args:
            role: The role that acted, which is the one that the environment named last.
            action: Text of its turn; "" where the role has no tokens left to write with.

        Returns:
            The role that acts next, what roles read of this turn, and whether the episode is over. An observation is kept
            until its role's next turn; if there is none, it is not used.
        """

    def rewards(self) -> Mapping[str, float | Reward]:
        """Return the reward of every role in [0, 1], or in `reward_range`.

        Called once, at the end, which may be before the environment is done: environment.max_turns ends an episode, too.
        """

    def play(self, role: str, player: str, seed: int) -> str:
        """Return the action of an opponent that the environment itself provides; needed only where `players` has names.

        Args:
            role: Whose turn it is.
            player: One of `players`.
            seed: Of this turn; every episode and turn has another.
        """
