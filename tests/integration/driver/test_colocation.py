"""Engines and ranks that take turns learn what others learn, also when a rank dies."""

from __future__ import annotations

import signal
import threading

from tiny_runs import same_weights, wait_for_line

from kray.faults.compared import metrics
from kray.train.checkpoints import newest_checkpoint

KEYS = ("run.steps=3", "run.checkpoint_every=1", "evaluate.every=0")


def test_colocated_training_is_the_same_bit_for_bit(run_tiny, tmp_path):
    from kray.faults.targets import actors

    run_tiny("apart", *KEYS)
    killed = []

    def kill():
        wait_for_line(tmp_path / "shared/metrics.jsonl", 2)
        killed.extend(actors("kray-shared-learner"))
        killed[0].send(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = run_tiny("shared", *KEYS, "rollout.colocate=true", "train.offload=optimizer")
    killer.join()
    assert summary.restarts["learner"] == 1
    # The engine slept and went on with the new ranks.
    assert summary.engine_deaths == 0
    apart, shared = (metrics(tmp_path / name) for name in ("apart", "shared"))
    assert apart == shared
    assert same_weights(*(newest_checkpoint(tmp_path / name) for name in ("apart", "shared")))
