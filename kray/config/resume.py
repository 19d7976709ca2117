"""Configuration of a resumed run: the keys that may not change, and newer keys in runs that began without them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from kray.config import KrayConfig, changed_keys, kept_config, load_checked, load_config
from kray.errors import ConfigError

# Beginnings of the keys that stay the same for the life of a run.
SETTLED = (
    "model.",
    "run.seed",
    "prompts.train.",
    "prompts.per_step",
    "prompts.shuffle",
    "prompts.max_tokens",
    "environment.name",
    "environment.options",
    "environment.roles",
)

# Newer keys of prompts.train -> the value that keeps the prompts of runs that began without them.
BEFORE = {"keep_repeats": True, "prompt_format": "text"}


def load_resumed(path: str, overrides: Sequence[str], folder: Path) -> KrayConfig:
    """Load a configuration for the run in this folder, which goes on as it began where the configuration leaves it open.

    Args:
        path: of the YAML file.
        overrides: such as `run.steps=200`.
        folder: of the run.

    Raises:
        ConfigError: the configuration is wrong.
    """
    kept = kept_config(folder)
    begun = load_config(kept, [], checked=False) if kept.is_file() else None
    return as_begun(load_checked(path, overrides, begun), folder)


def as_begun(config: KrayConfig, folder: Path) -> KrayConfig:
    """Return the configuration with newer keys as the run in this folder began, where it began without them."""
    first = folder / "config.yaml"
    if not first.is_file():
        return config
    # for its errors: OmegaConf alone would not name the line
    load_config(str(first), [], checked=False)
    written = OmegaConf.select(OmegaConf.load(first), "prompts.train")
    config = copy.deepcopy(config)
    for key, value in BEFORE.items():
        if written is None or key not in written:
            setattr(config.prompts.train, key, value)
    return config


def note_changes(config: KrayConfig, folder: Path) -> list[str]:
    """Return a line for each key that differs from the configuration with which the run was last started.

    Args:
        config: of the resume.
        folder: of the run.

    Raises:
        ConfigError: a key differs that may not change on resume.
    """
    kept = kept_config(folder)
    if not kept.is_file():
        return []
    changed = [
        (key, old, new)
        for key, old, new in changed_keys(as_begun(load_config(str(kept), [], checked=False), folder), config)
        if key != "resume"
    ]
    source = config.prompts.train
    # whether reward.verifier, or the functions that it stands for, scores the training prompts
    scores = source.kind != "reasoning_gym" and not source.verifier
    settled = (*SETTLED, "reward.verifier", "reward.functions") if scores else SETTLED
    for key, old, new in changed:
        if key.startswith(settled):
            raise ConfigError(
                f"{key} was {old!r} when {folder.name} began and cannot become {new!r} on resume; start a new run "
                f"(settled for the life of a run: {', '.join(name.rstrip('.') for name in settled)}; other keys may change)"
            )
    return [f"changed since the run was last started: {key}: {old!r} -> {new!r}" for key, old, new in changed]
