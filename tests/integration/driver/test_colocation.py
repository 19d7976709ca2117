"""Engines and ranks that take turns learn what others learn, also when a rank dies."""

from __future__ import annotations

import signal
import threading

from tiny_runs import same_weights, wait_for_line

from kray.faults.compared import metrics
from kray.train.checkpoints import newest_checkpoint


def test_colocated_training_is_the_same_bit_for_bit(run_tiny, straight_run, tmp_path):
    from kray.faults.targets import actors

    _, apart = straight_run
    shared, killed = tmp_path / "shared", []

    def kill():
        wait_for_line(shared / "metrics.jsonl", 2)
        killed.extend(actors("kray-shared-learner"))
        killed[0].send(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    colocated = ("rollout.colocate=true", "train.offload=optimizer", "run.checkpoint_every=1")
    summary = run_tiny("shared", *colocated)
    killer.join()
    assert summary.restarts["learner"] == 1
    # The engine slept and went on with the new ranks.
    assert summary.engine_deaths == 0
    assert metrics(apart) == metrics(shared)
    assert same_weights(*map(newest_checkpoint, (apart, shared)))
