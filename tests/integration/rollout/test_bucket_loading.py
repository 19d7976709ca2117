"""A real vLLM engine loads weights bucket by bucket, and goes on with others when the rest does not come."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_pool import PROBE, PlainLearner, tasks
from weights_of_chance import cut

from kray.weight_sync.channel import ChannelWriter
from kray.weight_sync.flat_weights import FlatWeights

# Some ten buckets, more than there are slots.
BUCKET_BYTES = 50_000
LIMIT_S = 30.0


@pytest.fixture(params=[1, 2], ids=["one process", "two processes"])
def engine(ray_local, untied_policy, request):
    from kray.rollout.engine_spec import EngineSpec
    from kray.rollout.receiving_engine import EngineActor

    divided = {"tensor_parallel": request.param, "bucket_bytes": BUCKET_BYTES}
    spec = EngineSpec(str(untied_policy), "float32", 128, 16, 1, 0, 0.1, 0.0, eager=True, seed=0, **divided)
    actor = EngineActor.options(num_cpus=1, max_concurrency=4, runtime_env={"env_vars": spec.environment()}).remote(
        spec
    )
    ray_local.get(actor.start.remote(), timeout=180)
    yield actor
    ray_local.kill(actor)


def test_engine_loads_buckets_and_recovers_from_a_transfer_that_ends_early(ray_local, engine, untied_policy):
    learner = PlainLearner(untied_policy)
    state = [(name, parameter.detach()) for name, parameter in learner.model.named_parameters()]
    writer = ChannelWriter(2**20)

    def send(version: int, stop: int | None = None, change=lambda payload: None, orders=()):
        """Write buckets, up to `stop`, while the engine loads them; return its reply. It gets these tasks just before."""
        (feed,) = writer.open(1, LIMIT_S)
        ray_local.get(engine.join.remote(feed), timeout=60)
        engine.submit.remote(list(orders))
        reply = engine.receive.remote(version, list(PROBE))
        for header, payload in list(cut(state, BUCKET_BYTES))[:stop]:
            target = writer.payload(header.index)
            target[: len(payload)] = payload
            change(target)
            writer.publish(header)
        if stop is not None:
            writer.give_up()
        found = ray_local.get(reply, timeout=60)
        assert not writer.dropped
        return found

    def store(version: int):
        reference = [ray_local.put(FlatWeights.pack(state[:7])), ray_local.put(FlatWeights.pack(state[7:]))]
        return ray_local.get(engine.update.remote(version, reference, list(PROBE)), timeout=60)

    def check(proof) -> None:
        assert proof.checksum == FlatWeights.pack(state).checksum
        assert np.abs(proof.logprobs - learner.logprobs(PROBE)).mean() < 1e-4

    # The first version breaks: the engine is calibrated all the same, with the weights of the model's folder.
    start = learner.logprobs(PROBE)
    learner.shake()
    assert "given up before bucket 4" in send(0, stop=4)
    proof = store(0)
    check(proof)
    assert np.abs(proof.start - start).mean() < 1e-4
    for version in range(1, 3):
        learner.shake()
        check(send(version))

    # Rollouts that run go on with the next version that is complete, and sample nothing in between.
    learner.shake()
    assert "given up before bucket 4" in send(3, stop=4, orders=tasks(1, max_tokens=60))
    assert not ray_local.get(engine.collect.remote(0.0), timeout=60).finished
    assert ray_local.get(engine.collect.remote(1.0), timeout=60).sampled == 0
    check(store(3))
    finished = []
    while not finished:
        finished = ray_local.get(engine.collect.remote(5.0), timeout=60).finished
    ((_, rollouts),) = finished
    assert {version for rollout in rollouts for version, _, _ in rollout.policy_versions} <= {2, 3}
    assert any(rollout.policy_versions[-1][0] == 3 for rollout in rollouts)

    learner.shake()
    check(send(4))
    with torch.no_grad():
        learner.model.get_input_embeddings().weight[47] += 1  # a token that the probe does not use
    assert "those of the version before" in send(5)
    proof = store(5)
    check(proof)
    assert "sensitivity" in proof.seconds

    assert "no transfer was joined" in ray_local.get(engine.receive.remote(6, list(PROBE)), timeout=60)
    check(store(6))

    def alter(payload) -> None:
        payload[400] ^= 1

    with pytest.raises(Exception, match="weight arrived with checksum"):
        send(7, change=alter)
    writer.close()
