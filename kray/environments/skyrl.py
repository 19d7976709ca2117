"""Environments of SkyRL-Gym (PyPI: skyrl-gym), by their id.

A prompt's answer is the ground truth. Tools hold clients, which cannot be pickled, and are created anew in every turn. Actions
that an environment rewrites afterwards stay as they are: the policy is trained on exactly what it sampled.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from kray.environments.live import held_reward
from kray.records import Prompt
from kray.rewards.verifiers import Reward

try:
    import skyrl_gym as library
except ImportError:
    library = None

MISSING = 'the environment skyrl_gym needs the package skyrl-gym: pip install "skyrl-gym>=0.4,<0.5"'


class SkyRLGym:
    """One environment of SkyRL-Gym; the reward is the sum of the rewards of its turns, scaled to [0, 1]."""

    stops: tuple[str, ...] = ()
    gives_reward = True

    def __init__(
        self,
        env: str,
        config: Mapping[str, Any] | None = None,
        extras: Mapping[str, Any] | None = None,
        reward_range: Sequence[float] = (0.0, 1.0),
        json_answer: bool = False,
    ):
        """Choose an environment; `reset` creates it.

        Args:
            env: Its id, such as gsm8k_multi_turn.
            config: Its env_config, such as the address of a search service.
            extras: Its extras besides the ground truth, such as max_turns.
            json_answer: The ground truth is the prompt's answer read as JSON, such as {"target": ["18"]} for search.
            reward_range: Sums of rewards that become 0 and 1; sums beyond them count as these.

        Raises:
            ImportError: skyrl-gym is not installed.
            ValueError: There is no such environment, or reward_range is not (low, high).
        """
        if library is None:
            raise ImportError(MISSING)
        if env not in library.registry:
            raise ValueError(f'env "{env}" is not among those of skyrl_gym: {", ".join(sorted(library.registry))}')
        low, high = reward_range
        if not 0 < high - low < math.inf:
            raise ValueError(f"reward_range must be two ascending numbers, not {list(reward_range)}")
        self.name, self.config, self.extras = env, dict(config or {}), dict(extras or {})
        self.json_answer = json_answer
        self.low, self.high, self.total = float(low), float(high), 0.0
        self.env: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what cannot be pickled of the environment: its tools, which hold clients and functions."""
        kept = {name: value for name, value in vars(self.env).items() if _can_be_pickled(value)} if self.env else None
        return {**self.__dict__, "env": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Create the environment again, with the tools of a new one, where it was left."""
        self.__dict__.update(state)
        if self.env is not None:
            kept, self.env = self.env, self._make()
            vars(self.env).update(kept)

    def reset(self, prompt: Prompt, seed: int) -> str | list[dict[str, str]]:
        """Create the environment; return the messages that it adds to the prompt."""
        truth = {"ground_truth": json.loads(prompt.answer) if self.json_answer else prompt.answer}
        # Environments look for the ground truth in one of these, and some for an empty extra_info.
        self.extras = {"reward_spec": truth, "reward_model": truth, "extra_info": {}, **self.extras}
        self.env = self._make()
        messages = [dict(message) for message in prompt.messages or ({"role": "user", "content": prompt.text or ""},)]
        opening, _ = self.env.init([dict(message) for message in messages])
        if opening[: len(messages)] != messages:
            raise ValueError(f'env "{self.name}" rewrites the prompt, which is tokenized before')
        return opening[len(messages) :] or ""

    def step(self, action: str) -> tuple[str | list[dict[str, str]], bool]:
        """Pass the turn on; without an observation the policy continues its turn."""
        result = self.env.step(action)
        self.total += float(result["reward"])
        messages = [{"role": message["role"], "content": message["content"]} for message in result["observations"]]
        return messages or "", bool(result["done"])

    def reward(self) -> Reward:
        """Return the scaled sum of the rewards."""
        return Reward(held_reward(self.total, self.low, self.high), f"rewards add up to {self.total:g}")

    def _make(self) -> Any:
        from omegaconf import OmegaConf

        return library.make(self.name, env_config=OmegaConf.create(self.config), extras=self.extras)


def _can_be_pickled(value: Any) -> bool:
    try:
        pickle.dumps(value)
    # Each type fails in its own way: PicklingError, AttributeError, TypeError.
    except Exception:
        return False
    return True
