"""What the environments' processes run: one turn of one conversation, from a pickled environment to the next.

The pickles are opened in these processes alone; for the driver they are bytes.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kray.environments.interface import Environment, Observation
from kray.environments.registry import load_environment
from kray.records import Prompt
from kray.rewards.verifiers import as_reward


@dataclass(frozen=True, slots=True)
class Turn:
    """state: the environment, pickled. ended: it was asked for its reward, which is None where a verifier is to judge."""

    state: bytes
    observation: str | tuple[dict[str, str], ...] = ""
    ended: bool = False
    reward: float | None = None
    detail: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON: how it leaves an environment's process."""
        return {**asdict(self), "state": base64.b64encode(self.state).decode()}

    @classmethod
    def read(cls, plain: Any) -> Turn:
        """From `plain`, after JSON. Raises ValueError, KeyError, TypeError for what is no turn."""
        observation, reward, detail = plain["observation"], plain["reward"], plain["detail"]
        if not (reward is None or (isinstance(reward, float) and 0 <= reward <= 1)) or not isinstance(detail, str):
            raise ValueError("no reward of a turn")
        return cls(base64.b64decode(plain["state"]), _checked(observation), bool(plain["ended"]), reward, detail)


def begin(_: str, start: tuple[str, Mapping[str, Any], Prompt, int]) -> Turn:
    """start: (name, options, prompt, seed)."""
    name, options, prompt, seed = start
    environment: Environment = load_environment(name)(**options)
    observation = environment.reset(prompt, seed)
    return Turn(pickle.dumps(environment), _checked(observation))


def step(action: str, at: tuple[bytes, bool]) -> Turn:
    """at: (state, whether the policy can say no more)."""
    state, last = at
    environment: Environment = pickle.loads(state)
    observation, done = environment.step(action)
    if done or last:
        return _ended(environment)
    return Turn(pickle.dumps(environment), _checked(observation))


def finish(_: str, state: bytes) -> Turn:
    """The end of a conversation that could have gone on."""
    return _ended(pickle.loads(state))


for _function in (begin, step, finish):
    setattr(_function, "gives_no_reward", True)  # noqa: B010  # see kray/rewards/worker.py


def _ended(environment: Environment) -> Turn:
    value = environment.reward()
    if value is None:
        return Turn(b"", ended=True)
    reward = as_reward(value, type(environment).__name__)
    if not 0 <= reward.value <= 1:
        raise ValueError(f"the reward is {reward.value:g}, not in [0, 1]")
    return Turn(b"", ended=True, reward=reward.value, detail=reward.detail)


def _checked(observation: Observation) -> str | tuple[dict[str, str], ...]:
    """As plain data. Raises ValueError for what is neither text nor messages."""
    if isinstance(observation, str):
        observation.encode()  # half a character is no text
        return observation
    messages = tuple(dict(message) for message in observation)
    for message in messages:
        if not {"role", "content"} <= set(message) or not all(isinstance(text, str) for text in message.values()):
            raise ValueError(f"an observation is text or messages with role and content as text, not {message!r:.80}")
    if not messages:
        raise ValueError('an observation without a message: where there is nothing to say it is ""')
    return messages
