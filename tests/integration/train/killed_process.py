"""Runs that are killed while they save, for test_killed_saves.py: killed_process.py JOB, where JOB is pickled.

Each run trains, writes its checkpoints in the background as the driver does, and ends by SIGKILL at its instant: the n-th
time that its checkpoints folder is touched once step 1 is complete, or some seconds after the save of step 2 began.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from kray.train.checkpoints import CheckpointStore
from kray.train.learner import Learner

TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_touch(number: int, folder: str) -> None:
    """Python tells of every file that it opens, renames or removes, in any thread, just before it does."""
    left = number

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in TOUCHES and arguments and folder in str(arguments[0]):
            left -= 1
            if left < 0:
                die()

    sys.addaudithook(watch)


def train(job: dict[str, Any], run: Path, kind: str, instant: float) -> None:
    learner = Learner(0, 1, "", 0, job["model"], job["train"], "float32", 10, 0)
    store = CheckpointStore(run, 2)
    saving = 0
    for step, rows in enumerate(job["rows"], start=1):
        learner.update(rows)  # while the step before is being saved
        if saving:
            while not learner.saved():
                time.sleep(0.001)
            store.commit(saving, {"step": saving})
            if saving == 1 and kind == "touch":
                die_at_touch(int(instant), str(store.folder))
            if saving == 1 and kind == "time":
                threading.Timer(instant, die).start()
        learner.save(store.begin(step) / "learner", background=True)
        saving = step


def main(job: dict[str, Any]) -> None:
    """Exits with the number of runs that were not killed."""
    survivors = 0
    for run, kind, instant in job["runs"]:
        child = os.fork()  # before torch has made any thread
        if not child:
            train(job, Path(run), kind, instant)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        survivors += not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
    sys.exit(survivors)


if __name__ == "__main__":
    main(pickle.loads(Path(sys.argv[1]).read_bytes()))
