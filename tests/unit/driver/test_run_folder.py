"""Every run has a folder of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from kray.config import KrayConfig
from kray.driver.run_folder import run_folder
from kray.errors import ConfigError


def named(tmp_path, name: str) -> KrayConfig:
    config = KrayConfig()
    config.run.dir, config.run.name = str(tmp_path), name
    return config


def test_runs_of_one_name_that_start_at_once_have_different_folders(tmp_path):
    config = named(tmp_path, "same")
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: run_folder(config), range(48)))
    assert len(set(folders)) == 48
    assert sorted(folders) == sorted(tmp_path.iterdir())
    assert all(folder.name.startswith("same-") for folder in folders)


def test_name_that_is_no_folders_is_one_error(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.dir"):
        run_folder(named(tmp_path, "x" * 300))
    assert list(tmp_path.iterdir()) == []
