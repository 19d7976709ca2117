"""Environments by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from kray.config.players import Player
from kray.environments.live import METHODS, is_live
from kray.records import Prompt
from kray.reward_settings import read_range
from kray.rewards.outcome import UNIT

ENVIRONMENTS = {
    "calculator": "kray.environments.calculator:Calculator",
    "openenv": "kray.environments.openenv:OpenEnv",
    "tools": "kray.environments.tools:Tools",
    "textarena": "kray.environments.textarena:TextArena",
    "textarena_players": "kray.environments.textarena_players:TextArenaPlayers",
    "skyrl_gym": "kray.environments.skyrl:SkyRLGym",
    "gem": "kray.environments.gem:Gem",
    "verifiers": "kray.environments.verifiers:Verifiers",
    "nim": "kray.environments.nim:Nim",
    "solver_checker": "kray.environments.solver_checker:SolverChecker",
}


def path_of(name: str) -> str:
    """Return the path pkg.module:Class of an environment given by name or path."""
    return ENVIRONMENTS.get(name, name)


def load_object(path: str) -> Any:
    """Import an object.

    Args:
        path: pkg.module:name.

    Raises:
        ValueError: The path has another form, the import fails, or the module has no such name.
    """
    module_name, _, name = path.partition(":")
    if not (module_name and name):
        raise ValueError(f'"{path}": write it as pkg.module:name')
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:
        raise ValueError(f'"{path}": importing {module_name} failed: {type(error).__name__}: {error}') from error
    if found is None:
        raise ValueError(f'"{path}": {module_name} has no {name}')
    return found


def load_environment(name: str) -> Callable[..., Any]:
    """Return the class of an environment.

    Args:
        name: A key of ENVIRONMENTS or pkg.module:Class.

    Raises:
        ValueError: There is no such environment, or it lacks a method.
    """
    if ":" not in path_of(name):
        near = difflib.get_close_matches(name, ENVIRONMENTS, n=1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise ValueError(f'"{name}" is not known{hint}; known: {", ".join(ENVIRONMENTS)}, or pkg.module:Class')
    found = load_object(path_of(name))
    if not inspect.isclass(found):
        raise ValueError(f'"{name}" is no class')
    methods: tuple[str, ...] = ("reset", "step", "rewards" if has_roles(found) else "reward")
    place = "interface"
    if is_live(found):
        methods, place = METHODS, "live"
    missing = [method for method in methods if not callable(getattr(found, method, None))]
    if missing:
        raise ValueError(f'"{name}" has no method {", ".join(missing)}; see kray/environments/{place}.py')
    return found


def has_roles(environment: Any) -> bool:
    """Return whether an environment, or its class, is a RoleEnvironment."""
    return callable(getattr(environment, "rewards", None))


def roles_of(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the roles of an environment; () for one without.

    Args:
        name: A key of ENVIRONMENTS or pkg.module:Class.
        options: Keyword arguments of the class (environment.options).

    Raises:
        ValueError: There is no such environment, or it cannot be created.
    """
    return tuple(_created(name, options).roles) if has_roles(load_environment(name)) else ()


def check_players(
    name: str, options: Mapping[str, Any], players: Mapping[str, Player], opponents: Mapping[str, Player]
) -> None:
    """Check players of an environment that `check_environment` accepts.

    Args:
        name: Of the environment.
        options: Of the environment.
        players: Role -> its player in training (environment.roles).
        opponents: Name -> opponent in evaluations (environment.evaluate_against).

    Raises:
        ValueError: The environment has no such role or player, or no role learns.
    """
    roles = roles_of(name, options)
    if not roles:
        if players or opponents:
            raise ValueError(f'"{name}" has no roles: leave roles and evaluate_against empty')
        return
    if unknown := sorted(set(players) - set(roles)):
        raise ValueError(f'roles.{unknown[0]}: "{name}" has no such role; it has {", ".join(roles)}')
    own = tuple(getattr(_created(name, options), "players", ()))
    for key, given in (("roles", players), ("evaluate_against", opponents)):
        for place, player in given.items():
            if player.scripted and player.name not in own:
                known = ", ".join((*own, "start", "past", "endpoint"))
                raise ValueError(f'{key}.{place}: "{name}" has no player {player.name!r}; opponents: {known}')
    if not any(players.get(role, Player()).learns for role in roles):
        raise ValueError("roles: at least one role must be played by policy")


def _created(name: str, options: Mapping[str, Any]) -> Any:
    try:
        return load_environment(name)(**options)
    except ImportError as error:
        raise ValueError(str(error)) from error
    except Exception as error:
        raise ValueError(f'"{name}" cannot be created with its options: {type(error).__name__}: {error}') from error


def stops_of(name: str) -> tuple[str, ...]:
    """Return the texts that end a turn in an environment.

    Raises:
        ValueError: There is no such environment, or its `stops` is not a tuple of non-empty texts.
    """
    stops = getattr(load_environment(name), "stops", ())
    if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError(f'"{name}": stops must be a tuple of non-empty strings, not {stops!r}')
    return tuple(stops)


def range_of(environment: object, name: str) -> tuple[float, float]:
    """Return the ends of an environment's rewards: its attribute `reward_range`, else 0 and 1.

    Args:
        environment: The environment or its class.
        name: Of it, for messages.

    Raises:
        ValueError: The attribute is no range.
    """
    given = getattr(environment, "reward_range", None)
    return UNIT if given is None else read_range(given, f"{name}: its reward_range")


def gives_reward(name: str) -> bool:
    """Return whether an environment always gives the reward, so that answers of prompts are not used."""
    environment = load_environment(name)
    return has_roles(environment) or bool(getattr(environment, "gives_reward", False))


def options_of(options: Mapping[str, Any], prompt: Prompt) -> dict[str, Any]:
    """Return the keyword arguments of a prompt's environment: environment.options, and the prompt's own in place of them."""
    return {**options, **prompt.metadata.get("environment", {})}


def check_environment(name: str, options: Mapping[str, Any]) -> None:
    """Check that an environment can be created, and pickled unless it is a live one.

    Args:
        name: A key of ENVIRONMENTS or pkg.module:Class.
        options: Keyword arguments of the class (environment.options).

    Raises:
        ValueError: It cannot.
    """
    stops_of(name)
    environment = _created(name, options)
    range_of(environment, f'"{name}"')
    if is_live(environment):
        environment.check()
        return
    if has_roles(environment):
        _check_roles(name, getattr(environment, "roles", None))
    try:
        pickle.loads(pickle.dumps(environment))
    except Exception as error:
        raise ValueError(f'"{name}" cannot be pickled, which is required: {type(error).__name__}: {error}') from error


def _check_roles(name: str, roles: Any) -> None:
    if not isinstance(roles, tuple) or not roles or len(set(roles)) != len(roles):
        raise ValueError(f'"{name}": roles must be a tuple of different names, not {roles!r}')
    for role in roles:
        if not isinstance(role, str) or not role.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f'"{name}": role {role!r} must consist of letters, digits, - and _')
