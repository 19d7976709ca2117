"""A run that goes on: what of its configuration is settled, and what newer keys mean for runs that began without them."""

from __future__ import annotations

import copy
from pathlib import Path

from omegaconf import OmegaConf

from kray.config import KrayConfig, changed_keys, kept_config, load_config
from kray.errors import ConfigError

SETTLED = (
    "model.",
    "run.seed",
    "prompts.train.",
    "prompts.per_step",
    "prompts.shuffle",
    "prompts.max_tokens",
    "environment.name",
    "environment.options",
)  # for the life of a run
# Keys of prompts.train that came later, and what runs that began without them did: their prompts stay what they were.
BEFORE = {"keep_repeats": True, "prompt_format": "text"}


def as_begun(config: KrayConfig, folder: Path) -> KrayConfig:
    """Return the configuration with newer keys as the run in this folder began, where it began without them."""
    first = folder / "config.yaml"
    if not first.is_file():
        return config
    load_config(str(first), [], checked=False)  # raises what is wrong with the file
    written = OmegaConf.select(OmegaConf.load(first), "prompts.train")
    config = copy.deepcopy(config)
    for key, value in BEFORE.items():
        if written is None or key not in written:
            setattr(config.prompts.train, key, value)
    return config


def note_changes(config: KrayConfig, folder: Path) -> list[str]:
    """What differs from the configuration that the run was last started with, a line each. Raises ConfigError for what must
    not."""
    kept = kept_config(folder)
    if not kept.is_file():
        return []
    changed = [
        (key, old, new)
        for key, old, new in changed_keys(as_begun(load_config(str(kept), [], checked=False), folder), config)
        if key != "resume"
    ]
    source = config.prompts.train
    judged = source.kind != "reasoning_gym" and not source.verifier  # the training prompts, by reward.verifier
    settled = (*SETTLED, "reward.verifier") if judged else SETTLED
    for key, old, new in changed:
        if key.startswith(settled):
            raise ConfigError(
                f"{key} was {old!r} when {folder.name} began and cannot become {new!r} on resume; start a new run "
                f"(settled for the life of a run: {', '.join(name.rstrip('.') for name in settled)}; other keys may change)"
            )
    return [f"changed since the run was last started: {key}: {old!r} -> {new!r}" for key, old, new in changed]
