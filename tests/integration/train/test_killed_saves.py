"""A run that is killed while a checkpoint is written in the background goes on from its newest one as if nothing had been."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
from state_digest import state_digest

from kray.train.checkpoints import CheckpointStore, newest_checkpoint, read_state
from kray.train.training_rows import step_rows

STEPS = 12


def test_kill_during_background_save_keeps_newest_checkpoint(models, make, train, some_groups, ragged, tmp_path):
    rows = [step_rows(some_groups(seed, ragged), train) for seed in range(STEPS)]
    learner = make(models[True])
    digests = {}  # of the run that nothing interrupts
    for step in range(1, STEPS + 1):
        learner.update(rows[step - 1])
        digests[step] = state_digest(learner.state())

    rng = np.random.default_rng(0)
    instants = [("touch", n) for n in [*range(0, 16, 2), *sorted(rng.integers(16, 120, 6).tolist())]]
    instants += [("time", s) for s in rng.uniform(0, 0.04, 6).round(4).tolist()]
    runs = [(str(tmp_path / f"{kind}-{instant}"), kind, instant) for kind, instant in instants]
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps({"model": models[True], "train": train, "rows": rows, "runs": runs}))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    program = [sys.executable, str(Path(__file__).with_name("killed_process.py")), str(job)]
    assert subprocess.run(program, env=environment, timeout=300).returncode == 0  # all were killed

    unfinished, found = [], set()
    for run, _, _ in runs:
        folders = list(Path(run, "checkpoints").glob(".tmp-step-*/learner"))
        unfinished += [not (folder / ".metadata").exists() for folder in folders]
        checkpoint = newest_checkpoint(Path(run))
        assert checkpoint is not None
        step = read_state(checkpoint)["step"]
        found.add(step)
        learner = make(models[True])
        learner.load(checkpoint / "learner")
        assert state_digest(learner.state()) == digests[step]
        learner.update(rows[step])
        assert state_digest(learner.state()) == digests[step + 1]  # it goes on as if it had not been killed
        store = CheckpointStore(Path(run), 2)  # and can save again
        learner.save(store.begin(step + 1) / "learner")
        assert newest_checkpoint(Path(run)) == checkpoint
        assert newest_checkpoint(Path(run)) != store.commit(step + 1, {"step": step + 1}) == store.newest()
    print(
        f"\n{len(runs)} kills, {sum(unfinished)} while the learner's part was being written, steps found: {sorted(found)}"
    )
    assert any(unfinished)
    assert not all(unfinished)
    assert len(found) > 2
