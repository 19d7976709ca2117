"""All ranks of a job, for test_memory.py: learner_memory_process.py JOB, where JOB is pickled (number of ranks, cases).

Started with MALLOC_MMAP_THRESHOLD_ set, so that each tensor of some size is a mapping of its own, which glibc counts exactly.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from kray.train.learner import Learner

FIELDS = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2; hblkhd is the number of bytes in mappings."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def allocated() -> int:
    """Bytes of all tensors that are alive."""
    mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo2.restype = Mallinfo
    return mallinfo2().hblkhd


def measure(job: Path, rank: int, ranks: int, cases: list[dict]) -> None:
    results = []
    for case in cases:
        gc.collect()
        before = allocated()
        address = ("127.0.0.1", case["port"])
        learner = Learner(rank, ranks, *address, case["model"], case["train"], case["dtype"], 10, 0)
        found = {"built": allocated() - before, "between": []}
        backward, step = learner._backward, learner.optimizer.step

        def watched(batch, old, found=found, backward=backward, before=before):
            result = backward(batch, old)
            found["between"].append(allocated() - before)
            return result

        def at_step(lr, found=found, step=step, before=before):
            found["step"] = allocated() - before
            return step(lr)

        learner._backward, learner.optimizer.step = watched, at_step
        learner.update(case["rows"])
        found["interface"] = os.environ.get("GLOO_SOCKET_IFNAME")
        results.append(found)
        learner.shutdown()
        del learner, backward, step, watched, at_step
    job.with_name(f"result-{rank}").write_bytes(pickle.dumps(results))


def run_forked(work: Callable[[Path, int, int, list[dict]], None], job: Path) -> int:
    """work(job, rank, ranks, cases) in a process for each rank; 1 when one fails."""
    ranks, cases = pickle.loads(job.read_bytes())
    children = []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            try:
                work(job, rank, ranks, cases)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    return int(any([os.waitpid(child, 0)[1] for child in children]))


if __name__ == "__main__":
    sys.exit(run_forked(measure, Path(sys.argv[1])))
