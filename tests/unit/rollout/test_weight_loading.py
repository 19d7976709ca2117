"""An engine gets weights from the transfer that it has joined, and from the object store where that fails."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from kray.errors import KrayError
from kray.rollout.pool_state import PooledEngine, Published
from kray.rollout.weight_loading import WeightsUnavailable, learned, load
from kray.weight_sync.proof import Proof

PROOF = Proof(np.zeros(2, np.float32), "c", {})


def loaded(replies: dict, weights="stored", actor="actor") -> tuple[list, Proof]:
    """Load version 4 into an engine whose actor gives these replies; return the calls and the proof."""
    engine, calls = PooledEngine("engine-0", 3), []
    engine.actor = "actor"

    async def call(method, limit_s, *arguments):
        calls.append((method, limit_s, *arguments))
        return replies[method]

    published = Published(4, weights, "c", (1, 2, 3), np.zeros(2), joined={"engine-0": actor})
    return calls, asyncio.run(load(engine, published, call, 7.0))


async def buckets():
    return ["first", "second"]


async def gone():
    raise KrayError("the learner has newer weights")


def test_an_engine_that_has_joined_receives():
    assert loaded({"receive": PROOF}) == ([("receive", 7.0, 4, [1, 2, 3])], PROOF)


def test_one_that_was_started_anew_loads_from_the_store():
    assert loaded({"update": PROOF}, actor="an earlier one") == ([("update", 7.0, 4, "stored", [1, 2, 3])], PROOF)


def test_a_broken_transfer_is_made_up_for_from_the_store():
    calls, proof = loaded({"receive": "the sender was lost", "update": PROOF}, weights=buckets)
    assert calls[1:] == [("update", 7.0, 4, ["first", "second"], [1, 2, 3])]
    assert proof is PROOF


def test_weights_that_the_learner_has_no_more_are_waited_for():
    with pytest.raises(WeightsUnavailable, match="newer weights"):
        loaded({"receive": "the sender was lost"}, weights=gone)


def test_what_the_learner_computes_goes_on_for_the_others():
    async def scenario():
        assert await learned(3) == 3
        slow = asyncio.ensure_future(asyncio.sleep(0.05, "done"))
        one = asyncio.ensure_future(learned(slow))
        await asyncio.sleep(0)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        return await learned(slow)

    assert asyncio.run(scenario()) == "done"
