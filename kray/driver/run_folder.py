"""The folder of a run's results."""

from __future__ import annotations

import time
from pathlib import Path

from kray.config import KrayConfig
from kray.errors import ConfigError


def run_folder(config: KrayConfig) -> Path:
    """Make a new folder, <run.dir>/<run.name>-<time>, for a run's results and return its absolute path.

    Raises:
        ConfigError: run.dir cannot be written.
    """
    base = Path(config.run.dir).expanduser().absolute()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = base / f"{config.run.name}-{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"run.dir: {folder} cannot be made: {error.strerror}") from error
        return folder
    raise ConfigError(f"run.dir: {base} is full of runs of this second")
