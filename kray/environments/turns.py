"""The functions that environment processes run: one turn of one rollout, from a pickled environment to the next.

Only these processes unpickle environments; the driver handles them as bytes.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kray.environments.interface import Environment, Observation
from kray.environments.registry import load_environment, options_of, range_of
from kray.records import Prompt
from kray.rewards.outcome import position, shown
from kray.rewards.verifiers import Reward, as_reward
from kray.text import brief, one_line, well_formed

# An observation as plain data.
PlainObservation = str | tuple[dict[str, str], ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """Result of `begin`, `step` or `finish`.

    Attributes:
        state: The pickled environment, or what names a live one's session; empty when the rollout has ended.
        observation: What the policy reads next, as text or as messages.
        ended: Whether the rollout has ended.
        reward: The environment's reward in [0, 1]; None: a verifier is to score the rollout.
        detail: Explanation of the reward.
    """

    state: Any
    observation: str | tuple[dict[str, str], ...] = ""
    ended: bool = False
    reward: float | None = None
    detail: str = ""

    def plain(self) -> dict[str, Any]:
        """Return the turn as JSON-compatible data, the form in which it leaves an environment's process."""
        return {**asdict(self), "state": base64.b64encode(self.state).decode()}

    @classmethod
    def read(cls, plain: Any) -> Turn:
        """Invert `plain`.

        Raises:
            ValueError, KeyError, TypeError: The data is not that of a turn.
        """
        observation, reward, detail = plain["observation"], plain["reward"], plain["detail"]
        if not (reward is None or (isinstance(reward, float) and 0 <= reward <= 1)) or not isinstance(detail, str):
            raise ValueError(f"reward {reward!r:.80} is not a number in [0, 1] or its detail is not text")
        return cls(
            base64.b64decode(plain["state"]),
            checked_observation(observation),
            bool(plain["ended"]),
            reward,
            one_line(detail),
        )


def begin(_: str, start: tuple[str, Mapping[str, Any], Prompt, int]) -> Turn:
    """Create and reset an environment.

    Args:
        _: Unused; the scorer passes a response here.
        start: (name, options, prompt, seed).
    """
    name, options, prompt, seed = start
    environment: Environment = load_environment(name)(**options_of(options, prompt))
    observation = environment.reset(prompt, seed)
    return Turn(pickle.dumps(environment), checked_observation(observation))


def step(action: str, position: tuple[bytes, bool]) -> Turn:
    """Pass a turn of the policy to its environment.

    Args:
        action: Text of the turn.
        position: (pickled environment, whether this is the policy's last turn).
    """
    state, last = position
    environment: Environment = pickle.loads(state)
    observation, done = environment.step(action)
    if done or last:
        return _ended(environment)
    return Turn(pickle.dumps(environment), checked_observation(observation))


def finish(_: str, state: bytes) -> Turn:
    """End a rollout that the environment would have continued.

    Args:
        _: Unused; the scorer passes a response here.
        state: The pickled environment.
    """
    return _ended(pickle.loads(state))


for _function in (begin, step, finish):
    setattr(_function, "gives_no_reward", True)  # noqa: B010  # see kray/rewards/worker.py


def _ended(environment: Environment) -> Turn:
    return reward_turn(environment.reward(), environment)


def reward_turn(value: float | Reward | None, environment: object) -> Turn:
    """Return the last turn of a rollout.

    Args:
        value: What the environment returned as its reward.
        environment: The environment.

    Raises:
        ValueError: The reward is not a number in the environment's range.
    """
    if value is None:
        return Turn(b"", ended=True)
    reward, detail = unit_reward(value, environment)
    return Turn(b"", ended=True, reward=reward, detail=detail)


def unit_reward(value: float | Reward, environment: object, role: str = "") -> tuple[float, str]:
    """Return a reward as a number in [0, 1], and its explanation.

    Args:
        value: What an environment gave.
        environment: Whose attribute `reward_range` says which values stand for 0 and 1, if it has one.
        role: Whose reward it is, for messages.

    Raises:
        ValueError: The reward is not a number in the environment's range.
    """
    name = type(environment).__name__
    reward = as_reward(value, name)
    ends = range_of(environment, name)
    unit = position(reward.value, *ends)
    if unit is None:
        of_role = f" of {role}" if role else ""
        raise ValueError(f"{name}: the reward{of_role} is {reward.value:g}, not in {shown(ends)}, its reward_range")
    return unit, reward.detail


def checked_observation(observation: Observation) -> PlainObservation:
    """Return an observation as plain data that tokenizers take: with U+FFFD in place of each half of a character.

    Raises:
        ValueError: It is neither text nor messages.
    """
    if isinstance(observation, str):
        return well_formed(observation)
    messages = tuple(dict(message) for message in observation)
    for message in messages:
        if not {"role", "content"} <= set(message) or not all(
            isinstance(text, str) for text in (*message, *message.values())
        ):
            raise ValueError(
                f"an observation must be text or messages with role and content as text, not {brief(message)}"
            )
    if not messages:
        raise ValueError('an observation has no messages; return "" for nothing')
    return tuple({well_formed(key): well_formed(text) for key, text in message.items()} for message in messages)
