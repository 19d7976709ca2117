"""In which order learner and engines compute when new weights are served."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from kray.config import load_config
from kray.driver.workers import Workers
from kray.weight_sync.flat_weights import Gathered


def recording_workers(overrides: list[str]) -> tuple[Workers, list[str]]:
    """Return workers without processes, and the list that gets what they do."""
    done: list[str] = []
    workers = object.__new__(Workers)
    workers.config = load_config("configs/tiny.yaml", overrides)
    workers.colocation = workers.broadcasts = workers.adapters = None

    async def gather_weights(adapters: bool):
        done.append("weights")
        return Gathered(8, "sum", 0.0, 0.0), "reference"

    async def logprobs(tokens):
        done.append("logprobs begin")
        await asyncio.sleep(0.01)
        done.append("logprobs end")
        return np.zeros(3, dtype=np.float32)

    async def publish(published):
        done.append("engines load")
        value = published.logprobs
        assert (await value).shape == (3,)
        return 0.5

    workers.learners = SimpleNamespace(gather_weights=gather_weights)
    workers.probe = SimpleNamespace(logprobs=logprobs, tokens=(1, 2, 3, 4), start=None)
    workers.pool = SimpleNamespace(publish=publish)
    return workers, done


ALL_CORES = ["rollout.threads_per_engine=-1", "train.threads_per_rank=-1"]


@pytest.mark.parametrize("overrides", [[], ALL_CORES[:1], ALL_CORES[1:]])
def test_the_learner_computes_the_probe_while_the_engines_load(overrides):
    workers, done = recording_workers(overrides)
    assert asyncio.run(workers.serve(1)) == 0.5
    assert done.index("weights") == 0
    assert done.index("engines load") < done.index("logprobs end")


def test_a_learner_that_shares_its_cores_with_the_engines_computes_the_probe_before_they_load():
    workers, done = recording_workers(ALL_CORES)
    assert asyncio.run(workers.serve(1)) == 0.5
    assert done == ["logprobs begin", "logprobs end", "weights", "engines load"]
