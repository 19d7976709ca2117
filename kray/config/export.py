"""A configuration as YAML, as flat parameters, as a digest, and compared with another one. None of them holds a secret."""

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
    """Every key with its value; `load_config` of it gives an equal configuration.

    Secrets of the environment are written as ${oc.env:NAME}; others, such as a password in track.uri, as ***.
    """
    return yaml.dump(_written(_tree(config)), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def flat(config: KrayConfig) -> dict[str, Any]:
    """{dotted key: scalar}, *** for secrets; lists as JSON, an absent section and an empty mapping as None.

    Raises ConfigError where two keys of mappings have one dotted name, as {"a.b": 1} beside {"a": {"b": 2}}.
    """
    found: dict[str, Any] = {}
    _flatten(_tree(config), "", found)
    return found


def digest(config: KrayConfig) -> str:
    """16 hex digits; equal exactly for equal configurations."""
    canonical = json.dumps(_tree(config), sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def changed_keys(old: KrayConfig, new: KrayConfig) -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of all that differs; None where a key is absent."""
    before, after = flat(old), flat(new)
    keys = list(dict.fromkeys([*before, *after]))
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def _tree(config: KrayConfig) -> dict[str, Any]:
    """Sections by their names in files."""
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
    """The same tree, with text that would be taken for an interpolation escaped, and without secrets."""
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
