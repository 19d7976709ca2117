"""Engines are calibrated with the start model, and held to what they differed by there."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from kray.config.schema import RolloutConfig
from kray.rollout.engine_supervisor import EngineLost, EngineSupervisor
from kray.rollout.pool_state import PooledEngine, PoolState, Published
from kray.weight_sync.proof import Proof

START = np.float32([-1.0, -2.0, -3.0])
NOISE = np.float32([0.02, -0.02, 0.02])
PROBE = (1, 2, 3, 4)


def supervised(dtype: str = "bfloat16", **rollout) -> EngineSupervisor:
    engine = PooledEngine("engine-0", 1)
    spec = SimpleNamespace(dtype=dtype)
    return EngineSupervisor(PoolState(RolloutConfig(**rollout), spec, "", None, {"engine-0": engine}), engine)


def prove(supervisor, proof: Proof, logprobs, start=START, probe=PROBE) -> None:
    """Let an engine give a proof of weights for which the learner computes these logprobs."""

    async def call(*_):
        return proof

    supervisor._call = call
    asyncio.run(supervisor._prove(Published(1, None, "sum", probe, logprobs, start)))


def test_calibrated_engine_is_held_to_its_own_rounding():
    supervisor, later = supervised(), START - 0.5
    prove(supervisor, Proof(START + NOISE, "sum", {}, START + NOISE), START)
    prove(supervisor, Proof(later - NOISE, "sum", {}), later)
    # within the tolerance of bfloat16, beyond the rounding of this engine
    with pytest.raises(EngineLost, match=r"differ by 8.0e-02 nats, allowed are 7.5e-02 \(rollout.probe_tolerance\)"):
        prove(supervisor, Proof(later + 4 * NOISE, "sum", {}), later)


@pytest.mark.parametrize(
    ("start", "engine_start", "probe", "rollout"),
    [
        (None, START + NOISE, PROBE, {}),  # the learner's part is unknown, as of a policy that an old checkpoint holds
        (START, None, PROBE, {}),
        (START, START + NOISE, (1, 2, 3, 5), {}),  # calibrated by another probe
        (START, START + NOISE, PROBE, {"probe_tolerance": 0.1}),  # a tolerance that was set is the whole rule
    ],
)
def test_uncalibrated_engine_is_held_to_the_tolerance(start, engine_start, probe, rollout):
    supervisor = supervised(**rollout)
    prove(supervisor, Proof(START + NOISE, "sum", {}, engine_start), START, start, PROBE)
    prove(supervisor, Proof(START + 4 * NOISE, "sum", {}), START, start, probe)
    with pytest.raises(EngineLost, match=r"allowed are 1\.0e-01"):
        prove(supervisor, Proof(START + 6 * NOISE, "sum", {}), START, start, probe)


@pytest.mark.parametrize(("dtype", "amount"), [("bfloat16", 6), ("float32", 0.1)])
def test_engine_with_another_start_model_is_lost(dtype, amount):
    with pytest.raises(EngineLost, match="does not compute the learner's start model"):
        prove(supervised(dtype), Proof(START, "sum", {}, START + amount * NOISE), START)


def test_float32_is_stricter_than_its_tolerance():
    supervisor = supervised("float32")
    prove(supervisor, Proof(START, "sum", {}, START), START)
    prove(supervisor, Proof(START + 0.004 * NOISE, "sum", {}), START)
    with pytest.raises(EngineLost, match=r"allowed are 1\.0e-04"):
        prove(supervisor, Proof(START + 0.02 * NOISE, "sum", {}), START)


def test_an_engine_whose_new_process_differs_as_much_serves_with_a_warning(caplog):
    supervisor, wrong = supervised("float32"), Proof(START + 0.02 * NOISE, "sum", {}, START)
    with pytest.raises(EngineLost):
        prove(supervisor, wrong, START)
    with caplog.at_level("WARNING"):
        prove(supervisor, wrong, START)
        prove(supervisor, wrong, START)
    assert [record.message.split(":")[0] for record in caplog.records] == ["pool"]
    assert "engine-0 serves all the same" in caplog.text
    # beyond what any engine may differ by
    with pytest.raises(EngineLost, match="are not the learner's"):
        prove(supervisor, Proof(START + NOISE, "sum", {}), START)
