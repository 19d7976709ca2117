"""Who plays a role of an environment: `environment.roles` and `environment.evaluate_against`. Pure.

A player is written as the text `policy`, as the name of an opponent, or as a mapping with the key `opponent` and further
keys: for an endpoint those of EndpointConfig, for an older version of the policy `every`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kray.config.ranges import RANGES, number_problem
from kray.config.schema import EnvironmentConfig
from kray.errors import ConfigError

# Names of players that no environment may use for its own.
POLICY, START, PAST, ENDPOINT = "policy", "start", "past", "endpoint"
APIS = ("chat", "completions")


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible server whose model plays a role.

    Attributes:
        url: Base URL, up to and without /chat/completions, such as http://127.0.0.1:8000/v1.
        model: Name of the model.
        api: chat, or completions, for models without a chat template.
        key_env: Environment variable of the driver with the key. Unset: no key is sent.
        deadline_s: Deadline of one turn in seconds, all attempts together. After it the episode is a data failure.
        max_tokens: Most tokens of a turn.
        temperature: Sampling temperature.
    """

    url: str
    model: str
    api: str = "chat"
    key_env: str = "KRAY_API_KEY"
    deadline_s: float = 60.0
    max_tokens: int = 256
    temperature: float = 1.0


@dataclass(frozen=True)
class Player:
    """Who plays a role.

    Attributes:
        name: `policy`: the policy in training. `start`: the model that the run began with. `past`: an older version of the
            policy. `endpoint`: a server. Others: a player that the environment itself provides.
        endpoint: The server, for `endpoint` only.
        every: Steps after which `past` is refreshed, K: after s steps it is the policy as it was after the newest step before
            s that is a multiple of K. 0 for others.
    """

    name: str = POLICY
    endpoint: EndpointConfig | None = field(default=None)
    every: int = 0

    def __str__(self) -> str:
        return f"{self.name}-{self.every}" if self.every else self.name

    @property
    def learns(self) -> bool:
        """Whether its turns are learned from."""
        return self.name == POLICY

    @property
    def scripted(self) -> bool:
        """Whether the environment plays it."""
        return self.name not in (POLICY, START, PAST, ENDPOINT)

    @property
    def frozen(self) -> bool:
        """Whether it is a version of the policy that does not learn, on an engine of its own."""
        return self.name in (START, PAST)


def read_players(players: Mapping[str, Any], key: str) -> dict[str, Player]:
    """Read a section that maps names to players.

    Args:
        players: Name -> text or mapping.
        key: Of the section in the configuration, for messages.

    Raises:
        ConfigError: A value describes no player; the message names its key.
    """
    return {name: read_player(value, f"{key}.{name}") for name, value in players.items()}


def read_player(value: Any, key: str) -> Player:
    """Read one player; see `read_players`."""
    if isinstance(value, str):
        value = {"opponent": value}
    if not isinstance(value, Mapping) or not isinstance(name := value.get("opponent"), str) or not name:
        raise ConfigError(f"{key} must be policy or {{opponent: NAME}}, not {value!r:.80}")
    rest = {option: given for option, given in value.items() if option != "opponent"}
    if name == PAST:
        return Player(name, every=_every(rest, key))
    if name != ENDPOINT:
        if rest:
            raise ConfigError(f"{key}.{min(rest)}: only opponent: {ENDPOINT} and {PAST} have further keys")
        return Player(name)
    return Player(name, _endpoint(rest, key))


def frozen_players(environment: EnvironmentConfig) -> list[Player]:
    """Return the opponents, in training or in evaluations, that need an engine of their own; each once.

    Raises:
        ConfigError: A value describes no player.
    """
    given = (*environment.roles.values(), *environment.evaluate_against.values())
    players = (read_player(value, "environment") for value in given)
    return list(dict.fromkeys(player for player in players if player.frozen))


def player_problems(environment: EnvironmentConfig) -> Iterator[tuple[str, str]]:
    """Yield (key, message) of each problem of the players of a configuration, as far as it shows without the environment."""
    for section, given in (("roles", environment.roles), ("evaluate_against", environment.evaluate_against)):
        key = f"environment.{section}"
        if given and not environment.name:
            yield key, f"{key} needs environment.name"
        for name, value in given.items():
            place = f"{key}.{name}"
            try:
                player = read_player(value, place)
            except ConfigError as error:
                yield key, str(error)
                continue
            if section == "roles":
                continue
            if player.learns:
                yield place, f"{place} must be an opponent, not {POLICY}"
            if not name.replace("_", "").replace("-", "").isalnum():
                yield place, f"{key}: {name!r} is part of a metric's name: use letters, digits, - and _"


def _every(given: dict[str, Any], key: str) -> int:
    if others := set(given) - {"every"}:
        raise ConfigError(f"{key}.{min(others)} is not a key of opponent: {PAST}; its key: every")
    every = given.get("every")
    if type(every) is not int or RANGES["run.steps"].problem(every):
        found = "is missing" if every is None else f"must be a whole number, {RANGES['run.steps']}, not {every!r:.80}"
        raise ConfigError(f"{key}.every {found}: the steps after which the older version is refreshed")
    return every


def _endpoint(given: dict[str, Any], key: str) -> EndpointConfig:
    known = {each.name: each for each in fields(EndpointConfig)}
    for option in given:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"{key}.{option} is not a key of an endpoint{hint}; its keys: {', '.join(known)}")
    for option in ("url", "model"):
        if not given.get(option):
            raise ConfigError(f"{key}.{option} is missing: opponent: {ENDPOINT} needs url and model")
    types: dict[str, Any] = {"deadline_s": float, "temperature": float, "max_tokens": int}
    for option, value in given.items():
        wanted = types.get(option, str)
        fits = type(value) in ((int, float) if wanted is float else (wanted,))
        if not fits:
            raise ConfigError(f"{key}.{option} must be {wanted.__name__}, not {value!r:.80}")
    found = EndpointConfig(**given)
    if not found.url.startswith(("http://", "https://")) or "@" in found.url:
        raise ConfigError(f"{key}.url must begin with http:// or https:// and hold no user; key_env names the key")
    if found.api not in APIS:
        raise ConfigError(f"{key}.api must be one of {', '.join(APIS)}, not {found.api!r}")
    for option in types:
        if text := number_problem(f"reward.judge.{option}", getattr(found, option), f"{key}.{option}"):
            raise ConfigError(text)
    return found
