"""The interface of live environments, whose rollouts are sessions: a connection, a running coroutine, a game on a server.

A session cannot be pickled, so it stays in one process, its host (kray/environments/host.py), which holds many sessions on
one event loop. Each rollout of a group has a session of its own, opened with the group's seed when the rollout's first turn
has been sampled. It must begin with the same observation as the group's others, since they are compared with each other.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Protocol

from kray.environments.interface import Observation
from kray.records import Prompt
from kray.rewards.outcome import position
from kray.rewards.verifiers import Reward


class Session(Protocol):
    """One rollout. Its methods are called one after the other, each under `environment.step_timeout_s`.

    An exception that a method raises fails the rollout as a data failure of its prompt.
    """

    async def reset(self) -> Observation:
        """Open the session; called once, first.

        Returns:
            What the policy reads after the prompt and before its first turn; "" for nothing.
        """

    async def step(self, action: str) -> tuple[Observation, bool]:
        """Reply to a turn of the policy.

        Args:
            action: Text of the turn.

        Returns:
            The observation, and whether the rollout is over; the observation of the last turn is not used.
        """

    async def reward(self) -> float | Reward | None:
        """Return the reward of the rollout; called once, at the end, also of a rollout that is cut short.

        Returns:
            A reward in [0, 1]; None: the prompt's verifier scores the policy's last turn.
        """

    async def close(self) -> None:
        """Release what the session holds; called once, also after a failure and while another method runs."""


class LiveEnvironment(Protocol):
    """The methods of a live environment, created with environment.options as keyword arguments.

    Attributes:
        stops: Texts that end the policy's turn, besides its end-of-sequence token.
    """

    stops: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise ValueError where the environment cannot run here, such as without its package; starts nothing."""

    async def start(self) -> None:
        """Start what the sessions of one host share. An exception ends the host, which is started again."""

    async def ready(self, prompt: Prompt) -> None:
        """Wait until a session of this prompt can be opened, such as for a server's start; has a start's deadline."""

    def opening(self, prompt: Prompt) -> Observation | None:
        """Return the first observation of a prompt's sessions; None: a session is opened to learn it."""

    def session(self, prompt: Prompt, seed: int) -> Session:
        """Return a session that has opened nothing yet.

        Args:
            prompt: The prompt of the group.
            seed: The same for all rollouts of the group.
        """

    async def close(self) -> None:
        """End what `start` started."""


# Methods that make a class a live environment.
METHODS = tuple(name for name, _ in inspect.getmembers(LiveEnvironment, inspect.isfunction) if not name.startswith("_"))


def is_live(environment: Any) -> bool:
    """Return whether a class or object is a live environment, not one of interface.py."""
    return callable(getattr(environment, "session", None))


def mapped_reward(value: float, low: float, high: float) -> float:
    """Map a reward from [low, high] to [0, 1].

    Raises:
        ValueError: The reward is outside of [low, high].
    """
    unit = position(value, low, high)
    if unit is None:
        raise ValueError(
            f"the reward is {value:g}, not in [{low:g}, {high:g}]; environment.options.reward_range states the range of rewards"
        )
    return unit


def held_reward(value: float, low: float = 0.0, high: float = 1.0) -> float:
    """Map a reward from [low, high] to [0, 1]; one beyond them counts as the nearer end.

    Raises:
        ValueError: The reward is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"the reward is {value:g}, not a finite number")
    return min(1.0, max(0.0, (value - low) / (high - low)))


def checked_range(reward_range: Any) -> tuple[float, float]:
    """Return the option reward_range as (low, high).

    Raises:
        ValueError: It is not two numbers in rising order.
    """
    numbers = list(reward_range)
    if (
        len(numbers) != 2
        or not all(type(n) in (int, float) for n in numbers)
        or not 0 < numbers[1] - numbers[0] < math.inf
    ):
        raise ValueError(f"reward_range must be [lowest, highest], not {numbers}")
    return float(numbers[0]), float(numbers[1])
