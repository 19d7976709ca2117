"""Adapters' files in memory end with the engine that wrote them, also with one that was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kray.rollout.adapter_folder import PREFIX, adapter_folder

HOLDER = """
import sys, time
from pathlib import Path
from kray.rollout.adapter_folder import adapter_folder
with adapter_folder(Path(sys.argv[1])) as folder:
    (folder / "adapter_model.safetensors").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds a folder; return it and the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait(20)


def test_what_a_killed_engine_left_is_removed_by_the_next(tmp_path, holder):
    process, left = holder
    # An earlier version's, which nobody holds.
    (tmp_path / f"{PREFIX}earlier").mkdir()
    with adapter_folder(tmp_path) as mine:
        # The other engine lives.
        assert sorted(tmp_path.iterdir()) == sorted([left, mine])
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    assert (left / "adapter_model.safetensors").stat().st_size == 1000
    with adapter_folder(tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]
        (mine / "adapter_config.json").write_text("{}")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_update_leaves_nothing(tmp_path):
    def update() -> None:
        with adapter_folder(tmp_path) as folder:
            (folder / "adapter_config.json").write_text("{}")
            raise ValueError("no layer")

    with pytest.raises(ValueError, match="no layer"):
        update()
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_removed_are_left(tmp_path):
    (tmp_path / f"{PREFIX}file").write_text("not a folder")
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path)
    with adapter_folder(tmp_path) as folder:
        assert folder.is_dir()
    assert len(list(tmp_path.iterdir())) == 2
