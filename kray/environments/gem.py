"""Games of GEM (PyPI: gem-llm), by their id.

A prompt is a starting position, as for textarena. GEM's environments of datasets hold the whole dataset, which would be
pickled in every turn: kray reads such datasets as prompts instead.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kray.config.templates import check_template, fill
from kray.environments.chance import numbered, seeded
from kray.records import Prompt, derive_seed
from kray.rewards.verifiers import Reward

_root = logging.getLogger()
_before = list(_root.handlers), _root.level
try:
    import gem as library
except ImportError:
    library = None
finally:
    # Importing it configures the root logger, so that every line of the job would appear twice.
    _root.handlers[:] = _before[0]
    _root.setLevel(_before[1])

MISSING = (
    "the environment gem needs the package gem-llm: pip install --no-deps --ignore-requires-python gem-llm==0.1.0 "
    "(see docs/environments.md)"
)
_KINDS = ("game:", "rg:")


class Gem:
    """One game of GEM; the reward is the sum of the rewards of its turns, at least 0 and at most 1."""

    stops: tuple[str, ...] = ()
    gives_reward = True

    def __init__(self, env: str, arguments: Mapping[str, Any] | None = None, chat: bool = True, shown: str = "\n{}\n"):
        r"""Choose a game; `reset` creates it.

        Args:
            env: Its id, such as game:GuessTheNumber-v0-easy. Policies write moves as \boxed{...}.
            arguments: Keyword arguments of the game in place of those that it is registered with.
            chat: Observations are chat messages of the user. false: text, for policies without a chat template.
            shown: With chat: false, the text of an observation, with {} for what the game says.

        Raises:
            ImportError: gem-llm is not installed.
            ValueError: There is no such game, or it is one of a dataset.
        """
        if library is None:
            raise ImportError(MISSING)
        if not env.startswith(_KINDS):
            raise ValueError(f'env "{env}" is neither a game (game:...) nor a task of reasoning_gym (rg:...)')
        if env not in library.envs.registration.ENV_REGISTRY:
            raise ValueError(f'env "{env}" is not among those of gem')
        try:
            check_template(shown)
        except ValueError as error:
            raise ValueError(f"shown {error}") from None
        self.name, self.arguments, self.chat, self.shown = env, dict(arguments or {}), chat, shown
        self.env: Any = None
        self.seed, self.turn, self.total = 0, 0, 0.0

    def reset(self, prompt: Prompt, seed: int) -> str:
        """Set up the prompt's position and return the rules, as a part of the prompt."""
        self.seed, position = seed, numbered(prompt)
        with seeded(position):
            self.env = library.make(self.name, **self.arguments)
            observation, info = self.env.reset(seed=position)
        return _text(observation, info)

    def step(self, action: str) -> tuple[str | list[dict[str, str]], bool]:
        """Make the policy's move."""
        with seeded(derive_seed(self.seed, "move", self.turn)):
            observation, reward, terminated, truncated, info = self.env.step(action)
        self.turn += 1
        self.total += float(reward)
        text = _text(observation, info)
        reply = [{"role": "user", "content": text}] if self.chat else fill(self.shown, text)
        return reply, bool(terminated or truncated)

    def reward(self) -> Reward:
        """Return the sum of the rewards, at least 0 and at most 1."""
        return Reward(min(1.0, max(0.0, self.total)), f"rewards add up to {self.total:g}")


def _text(observation: str, info: Mapping[str, Any]) -> str:
    return "\n".join(part for part in (observation, info.get("suffix", "")) if part)
