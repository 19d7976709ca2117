"""All ranks of a job, for test_context_parallel.py: models that are refused, what the backward pass keeps, and an exchange in
which one rank is missing.

learner_activation_process.py JOB, where JOB is pickled (number of ranks, cases).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from pickle import dumps

import torch
import torch.distributed as dist
from learner_memory_process import run_forked

from kray.errors import ConfigError
from kray.train.context_parallel import all_tokens, context_ranks
from kray.train.learner import Learner


def kept_bytes(learner: Learner, rows) -> list[int]:
    """Bytes that the backward pass of each micro-batch has been left by the forward pass, parameters included."""
    found = []
    for batch in learner._micro_batches(rows, 0):
        kept: dict[int, torch.UntypedStorage] = {}  # keeps them alive: their addresses are not used again

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            learner._backward(batch, None)
        found.append(sum(storage.nbytes() for storage in kept.values()))
    learner.optimizer.clear()
    return found


def wait_in_vain(rank: int, ranks: int) -> dict:
    """Of rank 0: how an exchange ended to which the others did not come, and after how many seconds."""
    waited, part = context_ranks(ranks, 2.0), torch.zeros(3, ranks, 4)
    dist.barrier()
    started, error = time.monotonic(), ""
    if rank:
        # Longer than the deadline, and still there: nothing but the time tells rank 0.
        time.sleep(6)
    else:
        try:
            all_tokens(part, part, part, 3 * ranks, waited)
        except RuntimeError as failure:
            error = str(failure)
    waited_s = time.monotonic() - started
    dist.barrier()
    return {"error": error, "waited_s": waited_s}


def measure(job: Path, rank: int, ranks: int, cases: list[dict]) -> None:
    results = []
    for case in cases:
        address = ("127.0.0.1", case["port"])
        try:
            learner = Learner(rank, ranks, *address, case["model"], case["train"], "float32", 10, 0)
        except ConfigError as error:
            results.append({"refused": str(error)})
            continue
        found = {"kept": kept_bytes(learner, case["rows"][0])}
        if case is cases[-1]:
            found |= wait_in_vain(rank, ranks)
        results.append(found)
        learner.shutdown()
    job.with_name(f"result-{rank}").write_bytes(dumps(results))


if __name__ == "__main__":
    sys.exit(run_forked(measure, Path(sys.argv[1])))
