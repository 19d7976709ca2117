"""The functions that environment processes run for environments with roles; see kray/environments/turns.py.

Opponents that the environment itself provides play in here, between the turns of others, so that their turns cost no trip
between processes.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kray.environments.interface import RoleEnvironment
from kray.environments.registry import load_environment
from kray.environments.turns import PlainObservation, checked_observation, unit_reward
from kray.records import Prompt, derive_seed
from kray.text import one_line

# (role, what it reads), in the order in which it happened.
Observed = list[tuple[str, PlainObservation]]


@dataclass(frozen=True, slots=True)
class RoleTurn:
    """Where an episode stands after one or more turns.

    Attributes:
        state: The pickled environment; empty when the episode has ended.
        role: Who acts next.
        observed: What roles read since.
        ended: Whether the episode has ended.
        rewards: Role -> (reward in [0, 1], its explanation), of all roles, when it has ended.
    """

    state: bytes
    role: str = ""
    observed: Observed = field(default_factory=list)
    ended: bool = False
    rewards: dict[str, tuple[float, str]] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return the turn as JSON-compatible data, the form in which it leaves an environment's process."""
        return {
            "state": base64.b64encode(self.state).decode(),
            "role": self.role,
            "observed": [[role, seen] for role, seen in self.observed],
            "ended": self.ended,
            "rewards": {role: list(reward) for role, reward in self.rewards.items()},
        }

    @classmethod
    def read(cls, plain: Any) -> RoleTurn:
        """Invert `plain`.

        Raises:
            ValueError, KeyError, TypeError: The data is not that of a turn.
        """
        rewards = {str(role): (value, detail) for role, (value, detail) in plain["rewards"].items()}
        for value, detail in rewards.values():
            if not (isinstance(value, float) and 0 <= value <= 1) or not isinstance(detail, str):
                raise ValueError(f"reward {value!r:.80} is not a number in [0, 1] or its detail is not text")
        rewards = {role: (value, one_line(detail)) for role, (value, detail) in rewards.items()}
        observed = [(str(role), checked_observation(seen)) for role, seen in plain["observed"]]
        state = base64.b64decode(plain["state"])
        return cls(state, str(plain["role"]), observed, bool(plain["ended"]), rewards)


@dataclass(frozen=True, slots=True)
class Move:
    """What happens next in an episode.

    Attributes:
        state: The pickled environment.
        role: Who acts; "": only the environment's own players do.
        action: Text of the turn.
        scripted: Role -> the environment's player that plays it.
        seed: Of the episode; the turns of the environment's players are drawn with seeds made of it.
        last: Whether the episode ends after this turn, whatever the environment returns.
    """

    state: bytes
    role: str
    action: str
    scripted: Mapping[str, str]
    seed: int
    last: bool = False


@dataclass(slots=True)
class _Game:
    """An environment between two turns: who acts next, and how many turns there have been."""

    environment: RoleEnvironment
    role: str
    turns: int = 0
    done: bool = False

    def pass_on(self, role: str, observations: Mapping[str, Any], observed: Observed) -> None:
        """Take who acts next and what roles read."""
        for name in (role, *observations):
            if name not in self.environment.roles and not (name == role and self.done):
                raise ValueError(f"{name!r:.80} is none of the roles {', '.join(self.environment.roles)}")
        self.role = role
        observed += [(name, checked_observation(seen)) for name, seen in observations.items() if seen]

    def step(self, action: str, observed: Observed) -> None:
        """Pass on an action of the role that acts."""
        role, observations, self.done = self.environment.step(self.role, action)
        self.turns += 1
        self.pass_on(role, observations, observed)


def begin(_: str, start: tuple[str, Mapping[str, Any], Prompt, int]) -> RoleTurn:
    """Create and reset an environment.

    Args:
        _: Unused; the scorer passes a response here.
        start: (name, options, prompt, seed).
    """
    name, options, prompt, seed = start
    environment: RoleEnvironment = load_environment(name)(**options)
    game, observed = _Game(environment, ""), Observed()
    game.pass_on(*environment.reset(prompt, seed), observed)
    return RoleTurn(pickle.dumps(game), game.role, observed)


def step(_: str, move: Move) -> RoleTurn:
    """Take a turn, and those of the environment's own players after it.

    Args:
        _: Unused; the scorer passes a response here.
        move: The turn.
    """
    game: _Game = pickle.loads(move.state)
    observed = Observed()
    if move.role:
        game.step(move.action, observed)
    while not (game.done or move.last) and (player := move.scripted.get(game.role)):
        action = game.environment.play(game.role, player, derive_seed(move.seed, game.role, game.turns))
        game.step(action, observed)
    if not (game.done or move.last):
        return RoleTurn(pickle.dumps(game), game.role, observed)
    return RoleTurn(b"", observed=observed, ended=True, rewards=_rewards(game.environment))


for _function in (begin, step):
    setattr(_function, "gives_no_reward", True)  # noqa: B010  # see kray/rewards/worker.py


def _rewards(environment: RoleEnvironment) -> dict[str, tuple[float, str]]:
    given = environment.rewards()
    if missing := [role for role in environment.roles if role not in given]:
        raise ValueError(f"rewards() has none for {missing[0]}")
    return {role: unit_reward(given[role], environment, role) for role in environment.roles}
