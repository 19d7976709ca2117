"""From what a person names (a run, a checkpoint, a model's folder) to a Hugging Face folder that can be served.

A checkpoint is exported once, into a cache; the same checkpoint is found there again. Everything is read as safetensors,
JSON and tensors: nothing that is unpickled could run code.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kray.errors import ConfigError
from kray.serve.policy_api import PolicySpec

LONGEST_CONTEXT = 8192  # tokens, where no --context is given
REQUEST_SHARE = 16  # contexts of response that one request may ask for, where no --max-tokens is given


def find_checkpoint(path: Path, step: int | None) -> Path | None:
    """The checkpoint that `path` means: its own, its newest, or that of a step; None for a model's folder.

    Raises ConfigError when it is none of them.
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
            f"{path} is no run, no complete checkpoint and no Hugging Face folder (config.json)"
        ) from error


def exported(checkpoint: Path, cache: Path, overrides: list[str]) -> tuple[Path, Any]:
    """(the folder of a checkpoint's export in the cache, the run's configuration); the folder may not exist yet."""
    from kray.config import kept_config, load_checked

    config = load_checked(str(kept_config(checkpoint.parent.parent)), [*overrides, "resume="])
    state = checkpoint / "state.json"
    told = [str(checkpoint.resolve()), state.read_text(), str(state.stat().st_mtime_ns), json.dumps(overrides)]
    name = hashlib.blake2b("\n".join(told).encode(), digest_size=8).hexdigest()
    return cache / f"{checkpoint.parent.parent.name}-{checkpoint.name}-{name}", config


def policy_spec(folder: Path, arguments: Any) -> PolicySpec:
    """How a model's folder is served. Raises ConfigError on a folder that cannot be.

    arguments: name, context, max_tokens, sequences, cpus, gpus, kv_cache_gib; 0 where the model decides.
    """
    from kray.prompts.model_files import load_tokenizer

    if not list(folder.glob("*.safetensors")):
        raise ConfigError(f"{folder} holds no .safetensors; weights of other forms are not read")
    load_tokenizer(str(folder))
    most = positions(folder)
    context = arguments.context or min(most, LONGEST_CONTEXT)
    if context > most:
        raise ConfigError(f"--context {context} is above the {most} positions of the model")
    for name in ("context", "max_tokens"):
        if getattr(arguments, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} must not be negative")
    return PolicySpec(
        folder=str(folder.resolve()),
        name=arguments.name or folder.name,
        context=context,
        max_tokens=arguments.max_tokens or REQUEST_SHARE * context,
        sequences=arguments.sequences,
        cpus=arguments.cpus,
        gpus=arguments.gpus,
        kv_cache_gib=arguments.kv_cache_gib,
    )


def positions(folder: Path) -> int:
    """Tokens that the model can read. Raises ConfigError."""
    try:
        told = json.loads((folder / "config.json").read_text())
        return int(told.get("text_config", told)["max_position_embeddings"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{folder / 'config.json'} does not say how long its contexts may be: {error!r}") from error
