"""Environments by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pickle
from collections.abc import Callable, Mapping
from typing import Any

ENVIRONMENTS = {
    "calculator": "kray.environments.calculator:Calculator",
    "tools": "kray.environments.tools:Tools",
}


def path_of(name: str) -> str:
    """pkg.module:Class."""
    return ENVIRONMENTS.get(name, name)


def load_object(path: str) -> Any:
    """What pkg.module:name names. Raises ValueError."""
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
    """The class behind a name. Raises ValueError that names it and says what was looked for."""
    if ":" not in path_of(name):
        near = difflib.get_close_matches(name, ENVIRONMENTS, n=1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise ValueError(f'"{name}" is not known{hint}; known: {", ".join(ENVIRONMENTS)}, or pkg.module:Class')
    found = load_object(path_of(name))
    if not inspect.isclass(found):
        raise ValueError(f'"{name}" is no class')
    missing = [method for method in ("reset", "step", "reward") if not callable(getattr(found, method, None))]
    if missing:
        raise ValueError(f'"{name}" has no method {", ".join(missing)}; see kray/environments/interface.py')
    return found


def stops_of(name: str) -> tuple[str, ...]:
    """Texts that end a turn in this environment. Raises ValueError."""
    stops = getattr(load_environment(name), "stops", ())
    if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError(f'"{name}": stops must be a tuple of texts, none of them empty, not {stops!r}')
    return tuple(stops)


def check_environment(name: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError unless one can be made with these options, and pickled."""
    stops_of(name)
    try:
        environment = load_environment(name)(**options)
    except Exception as error:
        raise ValueError(f'"{name}" cannot be made with its options: {type(error).__name__}: {error}') from error
    try:
        pickle.loads(pickle.dumps(environment))
    except Exception as error:
        raise ValueError(f'"{name}" cannot be pickled, as it must be: {type(error).__name__}: {error}') from error
