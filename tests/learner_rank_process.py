"""All ranks of a job, for test_learner_ranks.py: rank_process.py JOB, where JOB is pickled (number of ranks, cases)."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from pathlib import Path

from listening_sockets import open_to_others
from state_digest import state_digest

from kray.train.adapter_weights import adapter_weights
from kray.train.learner import Learner
from kray.train.model import DTYPES, WeightSource, full_state
from kray.train.probe_sample import sample_tokens


def cast_before_the_gather(model, dtype: str) -> bool:
    """Return whether what buckets are filled with, piece by piece, is what is gathered in float32 and cast then."""
    source = WeightSource(model, dtype)
    sizes = source.sizes()
    taken = [*source.take(0, 3), *source.take(3, len(sizes))]
    pieces = [(name, source.cast(tensor)) for name, tensor in taken]
    assert [tensor.nbytes for _, tensor in pieces] == sizes
    return state_digest(pieces) == state_digest((name, t.to(DTYPES[dtype])) for name, t in full_state(model))


def learn(job: Path, rank: int, ranks: int, cases: list[dict]) -> None:
    results = []
    for case in cases:
        address = ("127.0.0.1", case["port"])
        learner = Learner(rank, ranks, *address, case["model"], case["train"], "float32", 10, 0, lora=case["lora"])
        metrics = [learner.update(rows) for rows in case["rows"]]
        probe = learner.logprobs(case["probe"])
        sampled = sample_tokens(learner, (3, 4, 5), 4, 0)
        adapters = adapter_weights(learner)[1].tensors() if case["lora"] else []
        learner.save(case["checkpoint"], background=True)
        state = [(name, tensor.numpy()) for name, tensor in learner.state()]
        pieces = [cast_before_the_gather(learner.model, dtype) for dtype in ("float32", "bfloat16")]
        learner.update(case["rows"][0])  # goes on while the checkpoint is written, and must not show in it
        uninterrupted = state_digest(learner.state())
        learner.load(case["checkpoint"])
        learner.update(case["rows"][0])
        digests = [uninterrupted, state_digest(learner.state())]
        learner.load(case["start"])  # written by one rank
        loaded = [(name, tensor.numpy()) for name, tensor in learner.state()]
        found = {"metrics": metrics, "probe": probe, "state": state, "digests": digests, "loaded": loaded}
        found |= {"sampled": sampled, "adapters": [(name, tensor.numpy()) for name, tensor in adapters]}
        found["pieces"] = pieces
        results.append(found | {"open": open_to_others([os.getpid()])})
        learner.shutdown()
    job.with_name(f"result-{rank}").write_bytes(pickle.dumps(results))


def main(job: Path) -> int:
    """Forks the ranks, so that what they import is imported once, and before torch has made any thread. 1 when one fails."""
    ranks, cases = pickle.loads(job.read_bytes())
    children = set()
    for rank in range(ranks):
        child = os.fork()
        if not child:
            try:
                learn(job, rank, ranks, cases)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.add(child)
    failed = 0
    while children:
        child, status = os.wait()
        children.discard(child)
        if status and not failed:
            failed = 1
            for other in children:  # they would wait for the one that is gone
                os.kill(other, signal.SIGKILL)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
