"""Finds the Hugging Face folder to serve for a run, a checkpoint or a model's folder.

A checkpoint is exported once, into a cache. Everything is read as safetensors, JSON and tensors: nothing is unpickled that
could run code.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kray.errors import ConfigError
from kray.serve.policy_api import PolicySpec

# Longest context in tokens, unless --context is given.
DEFAULT_MAX_CONTEXT = 8192
# Response tokens that one request may ask for, in contexts, unless --max-tokens is given.
CONTEXTS_PER_REQUEST = 16


def find_checkpoint(path: Path, step: int | None) -> Path | None:
    """Return the checkpoint that a path names; None for a model's folder.

    Args:
        path: A run, a checkpoint or a Hugging Face folder.
        step: Step of the checkpoint to take from a run; None: the newest.

    Raises:
        ConfigError: The path is none of these.
    """
    from kray.train.checkpoints import checkpoint_at_step, find_checkpoint

    if not path.is_dir():
        raise ConfigError(f"{path} is not a folder; a run, a checkpoint or a Hugging Face folder is needed")
    if (path / "config.json").is_file():
        if step is not None:
            raise ConfigError(f"--step goes with a run folder; {path} is a model's")
        return None
    if step is not None:
        return checkpoint_at_step(path, step)
    try:
        return find_checkpoint(str(path))
    except ConfigError as error:
        raise ConfigError(
            f"{path} is neither a run nor a complete checkpoint nor a Hugging Face folder (config.json)"
        ) from error


def exported(checkpoint: Path, cache: Path, overrides: list[str]) -> tuple[Path, Any]:
    """Return where a checkpoint's export belongs in the cache, and the run's configuration.

    Args:
        checkpoint: The checkpoint's folder.
        cache: Folder of the cache.
        overrides: Dot-list overrides of the configuration.

    Returns:
        The folder of the export, which may not exist yet, and the configuration.
    """
    from kray.config import kept_config, load_checked

    config = load_checked(str(kept_config(checkpoint.parent.parent)), [*overrides, "resume="])
    state = checkpoint / "state.json"
    identity = [str(checkpoint.resolve()), state.read_text(), str(state.stat().st_mtime_ns), json.dumps(overrides)]
    name = hashlib.blake2b("\n".join(identity).encode(), digest_size=8).hexdigest()
    return cache / f"{checkpoint.parent.parent.name}-{checkpoint.name}-{name}", config


def policy_spec(folder: Path, arguments: Any) -> PolicySpec:
    """Return the settings for serving a model's folder.

    Args:
        folder: The Hugging Face folder.
        arguments: name, context, max_tokens, sequences, cpus, gpus and kv_cache_gib of the command line; 0 where the model
            decides.

    Raises:
        ConfigError: The folder or an argument is not valid.
    """
    from kray.prompts.model_files import load_tokenizer

    if not list(folder.glob("*.safetensors")):
        raise ConfigError(f"{folder} holds no .safetensors file; other formats of weights are not read")
    load_tokenizer(str(folder))
    most = max_positions(folder)
    context = arguments.context or min(most, DEFAULT_MAX_CONTEXT)
    if context > most:
        raise ConfigError(f"--context {context} is above the {most} positions of the model")
    for name in ("context", "max_tokens"):
        if getattr(arguments, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} must not be negative")
    return PolicySpec(
        folder=str(folder.resolve()),
        name=arguments.name or folder.name,
        context=context,
        max_tokens=arguments.max_tokens or CONTEXTS_PER_REQUEST * context,
        sequences=arguments.sequences,
        cpus=arguments.cpus,
        gpus=arguments.gpus,
        kv_cache_gib=arguments.kv_cache_gib,
    )


def max_positions(folder: Path) -> int:
    """Return the longest context that a model supports, in tokens.

    Raises:
        ConfigError: Its config.json does not state it.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        return int(config.get("text_config", config)["max_position_embeddings"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{folder / 'config.json'} does not state the model's longest context: {error!r}") from error
