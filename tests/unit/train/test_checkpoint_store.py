"""Checkpoints are whole or absent, and are found again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from logged_lines import logged_lines

from kray.errors import ConfigError, KrayError
from kray.train.checkpoints import CheckpointStore, find_checkpoint, newest_checkpoint, newest_intact, read_state


def write(run, step, keep=2):
    store = CheckpointStore(run, keep)
    (store.begin(step) / "learner" / "shard").write_text(f"weights of {step}")
    return store.commit(step, {"step": step})


def test_the_newest_checkpoints_stay(tmp_path):
    for step in (5, 10, 20, 100):
        folder = write(tmp_path, step)
        assert newest_checkpoint(tmp_path) == folder
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-000020", "step-000100"]
    assert read_state(folder) == {"step": 100}
    assert (folder / "learner" / "shard").read_text() == "weights of 100"


def test_what_was_not_committed_does_not_count_and_is_cleaned_up(tmp_path):
    folder = write(tmp_path, 5)
    store = CheckpointStore(tmp_path, 2)
    (store.begin(10) / "learner" / "shard").write_text("half")
    (tmp_path / "checkpoints" / "step-000020").mkdir()  # no state.json
    assert store.newest() == folder
    assert CheckpointStore(tmp_path, 2).newest() == folder
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


def test_a_write_that_fails_leaves_the_older_checkpoint(tmp_path):
    folder = write(tmp_path, 5, keep=1)
    store = CheckpointStore(tmp_path, 1)
    store.begin(10)
    with pytest.raises(TypeError):
        store.commit(10, {"step": object()})
    assert newest_checkpoint(tmp_path) == folder
    with pytest.raises(KrayError, match="begin\\(30\\)"):
        store.commit(30, {})


def test_rewritten_step_survives_a_kill_between_renames(tmp_path):
    write(tmp_path, 5)
    folder = write(tmp_path, 5)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000005"]
    folder.rename(folder.with_name(".old-step-000005"))
    assert newest_checkpoint(tmp_path) == folder.with_name(".old-step-000005")
    assert CheckpointStore(tmp_path, 1).newest() == folder


def test_resume_finds_checkpoint_run_and_newest_run(tmp_path):
    old, other = write(tmp_path / "run-20260101-120000", 5), write(tmp_path / "run-2-20270101-120000", 9)
    new = write(tmp_path / "run-2026-03-01T00-00-00", 3)
    (tmp_path / "run-20280101-120000").mkdir()  # a run that died before its first checkpoint
    os.utime(old / "state.json", ns=(1, 1))
    assert find_checkpoint("", tmp_path, "run") is None
    assert find_checkpoint("auto", tmp_path, "run") == new
    assert find_checkpoint("auto", tmp_path, "run-2") == other
    assert find_checkpoint("auto", tmp_path, "another") is None
    assert find_checkpoint(str(old), tmp_path, "run") == old
    assert find_checkpoint(str(old.parent.parent), tmp_path, "run") == old


def test_a_resume_that_names_nothing_is_a_config_error(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in ("missing", "empty"):
        with pytest.raises(ConfigError, match=r"resume: .*" + path):
            find_checkpoint(str(tmp_path / path), tmp_path, "run")
    with pytest.raises(ConfigError, match="keep_checkpoints"):
        CheckpointStore(tmp_path, 0)


def test_a_state_that_cannot_be_read_is_named(tmp_path):
    folder = write(tmp_path, 5)
    (folder / "state.json").write_text("{")
    with pytest.raises(KrayError, match=r"state\.json"):
        read_state(folder)


class Crash(BaseException):
    pass


def test_crash_leaves_the_newest_checkpoint_complete(tmp_path, monkeypatch):
    """Every call that touches the disk is made to be the last one, in turn."""
    calls = {Path: ("rename", "write_text", "mkdir"), os: ("unlink", "rmdir", "fsync"), shutil: ("rmtree",)}
    for step, replaced in ((20, False), (15, True)):
        crashes = 0
        while True:
            run = tmp_path / f"{step}-{crashes}"
            write(run, 10, keep=2)
            write(run, 15, keep=2)
            left = crashes

            def dying(real):
                def call(*args, **options):
                    nonlocal left
                    left -= 1
                    if left < 0:
                        raise Crash
                    return real(*args, **options)

                return call

            with monkeypatch.context() as patch:
                for owner, names in calls.items():
                    for name in names:
                        patch.setattr(owner, name, dying(getattr(owner, name)))
                try:
                    write(run, step, keep=2)
                    died = False
                except Crash:
                    died = True
            found = newest_checkpoint(run)
            assert found is not None
            shard = (found / "learner" / "shard").read_text()
            saved = read_state(found)["step"]
            assert shard == f"weights of {saved}"
            assert saved in ((15,) if replaced else (15, 20))
            assert CheckpointStore(run, 2).newest().name == f"step-{saved:06d}"
            if not died:
                break
            crashes += 1
        assert crashes > 5


def test_damaged_checkpoint_is_set_aside(tmp_path):
    folders = [write(tmp_path, step, keep=9) for step in (5, 10, 15, 20)]
    for folder, harm in ((folders[3], "weights of 21"), (folders[2], "short")):  # one as long as it was, one not
        (folder / "learner" / "shard").write_text(harm)
    with logged_lines() as lines:
        assert newest_intact(newest_checkpoint(tmp_path)) == folders[1] == newest_checkpoint(tmp_path)
    assert len(lines) == 2
    assert (
        "step-000020 is damaged: 1 of 1 files differ from what was written, first learner/shard (13 bytes" in lines[0]
    )
    (folders[1] / "state.json").write_text("{")
    (folders[0] / "learner" / "shard").unlink()
    assert newest_intact(newest_checkpoint(tmp_path)) is None
    assert newest_checkpoint(tmp_path) is None
    write(tmp_path, 16)  # what was set aside goes when its step is passed
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [".aside-step-000020", "step-000016"]


def test_the_future_that_a_run_leaves_does_not_count_any_more(tmp_path):
    folders = [write(tmp_path, step, keep=9) for step in (5, 10, 15)]
    assert CheckpointStore(tmp_path, 9).set_aside_after(5) == ["step-000010", "step-000015"]
    assert newest_checkpoint(tmp_path) == folders[0]


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "7", "null", '"x"', "{", "\0"])
def test_file_that_holds_no_state_is_damage(tmp_path, content):
    """Whatever it holds instead, nested too deeply for the reader or not an object."""
    whole, damaged = write(tmp_path, 5), write(tmp_path, 10)
    (damaged / "state.json").write_text(content)
    with pytest.raises(KrayError, match=r"state\.json"):
        read_state(damaged)
    assert newest_intact(damaged, set_aside=False) == whole


@pytest.mark.parametrize("name", ["../../other", "/dev/zero", "..", "learner", "pipe"])
def test_checksums_open_no_other_file(tmp_path, name):
    whole, damaged = write(tmp_path, 5), write(tmp_path, 10)
    os.mkfifo(damaged / "pipe")
    (damaged / "files.json").write_text(json.dumps({name: [0, 0]}))
    assert newest_intact(damaged, set_aside=False) == whole


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "7", "null", '{"learner/shard": 7}'])
def test_file_that_holds_no_checksums_is_damage(tmp_path, content):
    whole, damaged = write(tmp_path, 5), write(tmp_path, 10)
    (damaged / "files.json").write_text(content)
    assert newest_intact(damaged, set_aside=False) == whole
