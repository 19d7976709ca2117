"""Runs that lose their learner or their driver end as uninterrupted runs do."""

from __future__ import annotations

import signal
import threading
import time

import pytest
import ray
from tiny_runs import same_weights, wait_for_line

from kray.errors import KrayError
from kray.faults.compared import metrics
from kray.train.checkpoints import newest_checkpoint, read_state

KILLS = [(2, "driver"), (5, "learner-0"), (8, "driver")]  # lines of metrics.jsonl, whose process dies then
LONG = ("run.steps=8", "run.checkpoint_every=3", "evaluate.every=0", "rollout.max_response_tokens=40")


def kill_at(file, kills, done: list[str]) -> None:
    """Send SIGKILL to one process after the other, each when the file has so many lines."""
    from kray.faults.targets import actors

    for lines, part in kills:
        wait_for_line(file, lines, 400.0)
        (target,) = actors(f"kray-{file.parent.name}-", part)
        assert target.send(signal.SIGKILL)
        done.append(target.name)


def wait_for(reached, limit_s: float = 400.0) -> None:
    deadline = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_killed_driver_and_learner_change_no_bit(run_tiny, tmp_path):
    run_tiny("straight", *LONG)
    done: list[str] = []
    killer = threading.Thread(target=kill_at, args=(tmp_path / "hit/metrics.jsonl", KILLS, done))
    killer.start()
    summary = run_tiny("hit", *LONG)
    killer.join()
    killed = [name.removeprefix("kray-hit-").rpartition("-")[0] for name in done]  # without what makes a name new
    assert killed == ["driver-0", "again-1-learner-0-1", "driver-1"]
    assert summary.steps == 8
    assert summary.restarts["driver"] == 2
    places = {place["name"]: place["state"] for place in ray.util.placement_group_table().values()}
    mine = {name: state for name, state in places.items() if name.startswith("kray-hit")}
    lives = ("hit", "hit-again-1", "hit-again-2")  # each driver had one for its ranks, and none is kept from the next
    assert mine == {f"kray-{life}-learner": "REMOVED" for life in lives}
    straight, hit = (metrics(tmp_path / name) for name in ("straight", "hit"))
    assert [line["step"] for line in hit] == list(range(9))
    assert straight == hit
    ends = [newest_checkpoint(tmp_path / name) for name in ("straight", "hit")]
    one, other = (read_state(end) for end in ends)
    assert one["planner"] == other["planner"]
    assert (one["lengths"], one["calibration"]) == (other["lengths"], other["calibration"])
    assert same_weights(*ends)


def test_lost_rank_is_replaced_until_max_restarts(run_tiny, tmp_path, capsys):
    """The first loss comes before any checkpoint could be written, so the run starts from step 0."""
    from kray.faults.targets import actors

    lines, blocker = tmp_path / "run/metrics.jsonl", tmp_path / "run/checkpoints/.tmp-step-000003"
    engines, frozen = [], []

    def freeze():
        wait_for_line(lines, 1, 400.0)
        blocker.touch()  # where a folder is to be made
        for life, number in ((1, 6), (2, 10)):
            wait_for(lambda life=life: actors(f"kray-run-learner-1-{life}"))
            if life == 2:
                wait_for(lambda: len(lines.read_text().splitlines()) < 6)
            wait_for_line(lines, number, 400.0)
            blocker.unlink(missing_ok=True)
            engines.extend(target.pid for target in actors("kray-run-engine"))
            frozen.append(actors(f"kray-run-learner-1-{life}")[0])
            frozen[-1].send(signal.SIGKILL if life == 1 else signal.SIGSTOP)

    thread = threading.Thread(target=freeze, daemon=True)
    thread.start()
    with pytest.raises(KrayError, match=r"train\.timeout_s.*not started again after 1 restarts"):
        run_tiny("run", *LONG, "train.ranks=2", "train.timeout_s=20", "train.max_restarts=1", "run.steps=1000")
    thread.join(10)
    frozen[-1].send(signal.SIGKILL)  # Ray may have left it as it is
    assert len(engines) == 2
    assert len(set(engines)) == 1
    said = capsys.readouterr().out
    assert "checkpoint of step 3 not written, there is no checkpoint yet" in said
    assert "lost the learner; restarting from step 0" in said
    steps = [line["step"] for line in metrics(tmp_path / "run")]
    assert steps == list(range(len(steps)))
    assert read_state(newest_checkpoint(tmp_path / "run"))["step"] >= 3
