"""One rank of several, for test_learner.py: rank_process.py JOB RANK, where JOB is a pickled list of cases."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from kray.train.learner import Learner


def main(job: Path, rank: int) -> None:
    ranks, cases = pickle.loads(job.read_bytes())
    results = []
    for case in cases:
        learner = Learner(rank, ranks, "127.0.0.1", case["port"], case["model"], case["train"], "float32", 10, 0)
        metrics = [learner.update(rows) for rows in case["rows"]]
        probe = learner.logprobs(case["probe"])
        learner.save(case["checkpoint"])
        results.append({"metrics": metrics, "probe": probe, "state": [(n, t.numpy()) for n, t in learner.state()]})
        learner.shutdown()
    job.with_name(f"result-{rank}").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
