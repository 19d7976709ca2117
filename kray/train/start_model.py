"""Where the policy to start from is: a Hugging Face folder, a hub id, or a tiny policy that is made."""

from __future__ import annotations

from pathlib import Path

from kray.config import KrayConfig
from kray.errors import ConfigError


def find_model(config: KrayConfig) -> str:
    """Where the policy to start from is; the tiny one is made when its cache is empty. Raises ConfigError."""
    if config.model.tiny is not None:
        from kray.train.tiny_policy import ensure_tiny_policy

        return str(ensure_tiny_policy(config.model.tiny))
    return model_path(config)


def model_path(config: KrayConfig) -> str:
    """The named model's folder, made absolute, or its hub id. Raises ConfigError for a folder that is none."""
    check_model(config)
    path = Path(config.model.path).expanduser()
    return str(path.resolve()) if path.exists() else config.model.path


def check_model(config: KrayConfig) -> None:
    """Refuses a model folder that is none; a name that is no path is taken for a hub id."""
    name = config.model.path
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise ConfigError(f"model.path: {path} holds no config.json, so it is not a Hugging Face model folder")
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if not path.is_dir() and (path.exists() or (looks_like_path and "/" in name)):
        raise ConfigError(f"model.path: {path} is not a folder")
