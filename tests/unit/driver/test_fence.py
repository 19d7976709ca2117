"""A driver whose folder was taken by another one: it gives its work up, and nothing of it is written any more."""

from __future__ import annotations

import asyncio
import json

import pytest

from kray.cluster.folder_lock import FolderLock, LostLock
from kray.config.schema import TrackConfig
from kray.driver.fence import Fence
from kray.tracking import Tracker
from kray.train.checkpoints import CheckpointStore


def take_over(folder) -> None:
    (folder / ".lock/9.json").write_text(json.dumps({"token": "x", "user": "she", "host": "there"}))


def test_work_is_given_up_when_the_lock_is_lost(tmp_path):
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    async def drive() -> None:
        with FolderLock.acquire(tmp_path, "a training") as lock:
            fence = Fence.of(lock.ticket, "driver-0")
            take_over(tmp_path)
            try:
                await asyncio.wait_for(fence.unless_lost(work()), 20)
            finally:
                fence.close()

    with pytest.raises(LostLock, match="taken by she on there"):
        asyncio.run(drive())
    assert cleaned == [True]


def test_work_that_ends_returns_its_result_or_error(tmp_path):
    async def result() -> int:
        return 7

    async def failure() -> None:
        raise ValueError("wrong")

    async def drive() -> None:
        with FolderLock.acquire(tmp_path, "a training") as lock:
            fence = Fence.of(lock.ticket, "driver-0")
            assert await fence.unless_lost(result()) == 7
            with pytest.raises(ValueError, match="wrong"):
                await fence.unless_lost(failure())
            fence.close()
        unlocked = Fence.of(None, "driver-0")
        unlocked.check()
        assert await unlocked.unless_lost(result()) == 7
        unlocked.close()

    asyncio.run(drive())


class Lost:
    """A check that passes until the lock is lost."""

    lost = False

    def __call__(self) -> None:
        if self.lost:
            raise LostLock("taken")


def test_a_checkpoint_store_changes_nothing_any_more(tmp_path):
    check = Lost()
    store = CheckpointStore(tmp_path, 2, check)
    (store.begin(1) / "learner/file").write_text("1")
    check.lost = True
    before = sorted(tmp_path.rglob("*"))
    for write in (
        lambda: store.begin(2),
        lambda: store.commit(1, {}),
        lambda: store.discard(1),
        lambda: store.set_aside_after(0),
    ):
        with pytest.raises(LostLock):
            write()
    with pytest.raises(LostLock):
        CheckpointStore(tmp_path, 2, check)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_lock_that_is_lost_while_a_checkpoint_reaches_the_disk_commits_nothing(tmp_path, monkeypatch):
    from kray.train import checkpoints

    check, sync = Lost(), checkpoints._sync_tree

    def slow(folder) -> None:
        sync(folder)
        check.lost = True

    store = CheckpointStore(tmp_path, 2, check)
    store.begin(1)
    monkeypatch.setattr(checkpoints, "_sync_tree", slow)
    with pytest.raises(LostLock):
        store.commit(1, {})
    assert store.newest() is None


def test_a_tracker_writes_nothing_any_more_and_leaves_the_mlflow_run_open(tmp_path):
    from mlflow import MlflowClient

    check = Lost()
    tracker = Tracker(TrackConfig(system_metrics=False), tmp_path, "run", {}, {}, "", check=check)
    tracker.log_step(1, {"loss": 1.0})
    check.lost = True
    lines = (tmp_path / "metrics.jsonl").read_text()
    for write in (
        lambda: tracker.log_step(2, {"loss": 2.0}),
        lambda: tracker.log_table(2, [{"a": 1}]),
        lambda: tracker.rewind(0),
    ):
        with pytest.raises(LostLock):
            write()
    tracker.set_tags({"late": "yes"})
    assert tracker.finish("FAILED") == []
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    assert not (tmp_path / "samples").exists()
    run = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(tracker.mlflow_run_id)
    assert run.info.status == "RUNNING"
    assert "late" not in run.data.tags
    with pytest.raises(LostLock):
        Tracker(TrackConfig(system_metrics=False), tmp_path, "run", {}, {}, "", tracker.mlflow_run_id, 0, check=check)
    assert (tmp_path / "metrics.jsonl").read_text() == lines
