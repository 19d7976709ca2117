"""One rank of several, for test_learner_ranks.py: rank_process.py JOB RANK, where JOB is a pickled list of cases."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from kray.train.learner import Learner
from kray.train.model import state_digest


def main(job: Path, rank: int) -> None:
    ranks, cases = pickle.loads(job.read_bytes())
    results = []
    for case in cases:
        address = ("127.0.0.1", case["port"])
        learner = Learner(rank, ranks, *address, case["model"], case["train"], "float32", 10, 0, lora=case["lora"])
        metrics = [learner.update(rows) for rows in case["rows"]]
        probe = learner.logprobs(case["probe"])
        learner.save(case["checkpoint"], background=True)
        state = [(name, tensor.numpy()) for name, tensor in learner.state()]
        learner.update(case["rows"][0])  # goes on while the checkpoint is written, and must not show in it
        uninterrupted = state_digest(learner.state())
        learner.load(case["checkpoint"])
        learner.update(case["rows"][0])
        digests = [uninterrupted, state_digest(learner.state())]
        learner.load(case["start"])  # written by one rank
        loaded = [(name, tensor.numpy()) for name, tensor in learner.state()]
        results.append({"metrics": metrics, "probe": probe, "state": state, "digests": digests, "loaded": loaded})
        learner.shutdown()
    job.with_name(f"result-{rank}").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
