"""The digest of a child's settings, by which its results are recognised, also those that an earlier version wrote.

A digest is over all keys that kray had when it was made; config.yaml in the child's folder names them. A key that kray got
later changes no result while it has the value by which kray does what it did before: such results remain valid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kray.config import KrayConfig, flat
from kray.config.reading import attribute, declared, document, fields_of, is_section, read_bounded

# Keys that tell where results go and what is shown, not what the results are.
OWN = ("run.name", "run.dir", "track.", "resume")
# Newer keys whose default is not what kray did before it had them -> what it did.
BEFORE: dict[str, Any] = {
    "plan.calibrate": False,
    "train.baseline": "group",
    "train.epochs": 1,
    "train.lr_schedule": "constant",
    "train.max_kl": 0.0,
    "train.thin": 1.0,
}
# Newer keys that change nothing -> another key and the values of it with which they do not.
IDLE: dict[str, tuple[str, tuple[Any, ...]]] = {
    "plan.calibrate": ("train.baseline", ("group", "batch")),
    "plan.gain": ("plan.value", ("paper", "grpo", "coba")),
    "plan.tau": ("plan.value", ("paper", "grpo", "coba")),
    "train.advantage_floor": ("train.baseline", ("group",)),
    "train.lr_final": ("train.lr_schedule", ("constant",)),
}


def settings_digest(config: KrayConfig, others: Sequence[Any]) -> str:
    """Return 16 hexadecimal digits that are equal for children that compute the same.

    Args:
        config: Of the child.
        others: JSON values beside the configuration.
    """
    return _digest(_own(config), others)


def same_settings(digest: str, config: KrayConfig, others: Sequence[Any], folder: Path) -> bool:
    """Return whether a child was done with these settings, by this version of kray or an earlier one.

    Args:
        digest: That was written when it was done.
        config: As in `settings_digest`.
        others: As in `settings_digest`.
        folder: Of the child, with the configuration that it was done with.
    """
    now = _own(config)
    if digest == _digest(now, others):
        return True
    kept = _tree(folder / "config.yaml")
    newer = {key for key in now if _is_newer(key.split("."), kept)}
    if not all(_does_as_before(key, now) for key in newer):
        return False
    return digest == _digest({key: value for key, value in now.items() if key not in newer}, others)


def _does_as_before(key: str, now: Mapping[str, Any]) -> bool:
    """Return whether kray does with a newer key what it did before it had it."""
    other, values = IDLE.get(key, ("", ()))
    return now.get(other) in values or now[key] == (BEFORE[key] if key in BEFORE else _default(key))


def _default(key: str) -> Any:
    """Return the default of a key as `flat` has it, also in a section that is absent by default; "" where there is none."""
    kind: Any = KrayConfig
    value: Any = ""
    for name in key.split("."):
        if is_section(kind) and name in fields_of(kind):
            value = getattr(kind(), attribute(name))
            kind, _ = declared(fields_of(kind)[name])
        elif getattr(kind, "__origin__", None) is dict:
            kind, value = kind.__args__[1], ""
        else:
            return ""
    return json.dumps(value) if isinstance(value, list | tuple) else None if isinstance(value, Mapping) else value


def _own(config: KrayConfig) -> dict[str, Any]:
    return {key: value for key, value in flat(config).items() if not key.startswith(OWN)}


def _digest(own: Mapping[str, Any], others: Sequence[Any]) -> str:
    text = json.dumps([own, *others], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _tree(file: Path) -> Mapping[str, Any]:
    """Return a configuration as it was written; empty where there is none."""
    if not file.is_file():
        return {}
    tree = document(read_bounded(file).decode(), str(file))
    return tree if isinstance(tree, Mapping) else {}


def _is_newer(path: Sequence[str], tree: Mapping[str, Any]) -> bool:
    """Return whether a written configuration has the section of a key, but not the key."""
    for depth, name in enumerate(path):
        if name not in tree:
            return depth > 0
        inner = tree[name]
        if not isinstance(inner, Mapping):
            return False
        tree = inner
    return False
