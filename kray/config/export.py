"""Forms of a configuration: YAML, flat parameters, a digest, the difference from another one. None contains a secret."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from kray.config.reading import Dumper
from kray.config.redaction import redact_value, refer
from kray.config.schema import KrayConfig
from kray.errors import ConfigError


def to_yaml(config: KrayConfig) -> str:
    """Return every key with its value as YAML, which `load_config` reads as an equal configuration.

    Secrets of the environment are written as ${oc.env:NAME}; others, such as a password in track.uri, as ***.
    """
    return yaml.dump(_written(_tree(config)), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def flat(config: KrayConfig) -> dict[str, Any]:
    """Return {dotted key: scalar}, with *** for secrets; lists are JSON, absent sections and empty mappings None.

    Raises:
        ConfigError: two keys of mappings have one dotted name, as {"a.b": 1} beside {"a": {"b": 2}}.
    """
    found: dict[str, Any] = {}
    _flatten(_tree(config), "", found)
    return found


def digest(config: KrayConfig) -> str:
    """Return 16 hexadecimal digits, which are equal for equal configurations only."""
    canonical = json.dumps(_tree(config), sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def changed_keys(old: KrayConfig, new: KrayConfig) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, old value, new value) of every key that differs; None where a key is absent."""
    before, after = flat(old), flat(new)
    keys = list(dict.fromkeys([*before, *after]))
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def _tree(config: KrayConfig) -> dict[str, Any]:
    """Return the sections by their names in files."""
    return {name.rstrip("_"): section for name, section in dataclasses.asdict(config).items()}


def _flatten(value: Any, key: str, found: dict[str, Any]) -> None:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            _flatten(inner, f"{key}.{name}" if key else str(name), found)
    elif key in found:
        raise ConfigError(f"{key} is given twice, by keys of mappings that hold a dot: rename one of them")
    elif isinstance(value, Mapping):
        found[key] = None
    else:
        found[key] = redact_value(key, json.dumps(value) if isinstance(value, list | tuple) else value)


def _written(value: Any, key: str = "") -> Any:
    """Return the tree with text that looks like an interpolation escaped, and without secrets."""
    if isinstance(value, str):
        parts = refer(key, value)
        return "".join(
            f"${{oc.env:{name}}}" if name else re.sub(r"(\\*)\$\{", r"\1\1\\${", text) for text, name in parts
        )
    if isinstance(value, Mapping):
        return {name: _written(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_written(inner, key) for inner in value]
    return value
