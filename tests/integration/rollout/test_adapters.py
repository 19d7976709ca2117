"""Real vLLM engines that take LoRA adapters compute what engines with merged weights compute."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_pool import PROBE, tasks

from kray.config.schema import LoraConfig
from kray.rollout.adapters import AdapterSpec
from kray.train.lora import add_lora, lora_merges, peft_name, plain_name
from kray.weight_sync.flat_weights import FlatWeights

LORA = LoraConfig(rank=4, alpha=12.0)


class Adapted:
    """A learner with adapters, in plain transformers and peft."""

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        add_lora(self.model, LORA)
        self.adapters = {name: p for name, p in self.model.named_parameters() if ".lora_" in name}

    @torch.no_grad()
    def logprobs(self) -> np.ndarray:
        logits = self.model(torch.tensor([PROBE])).logits[0].double()
        return logits.log_softmax(-1)[:-1].gather(1, torch.tensor(PROBE[1:])[:, None])[:, 0].numpy()

    @torch.no_grad()
    def learn(self, amount: float) -> None:
        for parameter in self.adapters.values():
            parameter.add_(amount * torch.randn_like(parameter))

    def sent(self) -> FlatWeights:
        return FlatWeights.pack([(peft_name(name), p.detach().clone()) for name, p in self.adapters.items()])

    def merged(self) -> FlatWeights:
        merges = lora_merges(self.model)
        plain = [(n, p, plain_name(n)) for n, p in self.model.named_parameters()]
        whole = [(to, merges[n](p.detach(), lambda t: t) if n in merges else p.detach()) for n, p, to in plain if to]
        return FlatWeights.pack([(name, tensor.clone()) for name, tensor in whole])


def start_engine(ray, folder, adapters):
    from kray.rollout.engine import Engine
    from kray.rollout.engine_spec import EngineSpec

    class Tried(Engine):
        def attempt(self, weights, loads=True):
            """Return the proof of new weights, or the message of what went wrong; with loads=False nothing is loaded."""
            return self._command(self._try, weights, loads)

        def _try(self, weights, loads):
            load = self._load
            if not loads:
                self._load = lambda weights, clock: None
            try:
                return self._update(0, weights, list(PROBE))
            except Exception as error:
                return str(error)
            finally:
                self._load = load

    spec = EngineSpec(str(folder), "float32", 128, 16, 1, 0, 0.1, 0.0, eager=True, seed=0, adapters=adapters)
    actor = ray.remote(max_concurrency=2, concurrency_groups={"commands": 1})(Tried)
    return actor.options(num_cpus=1, runtime_env={"env_vars": spec.environment()}).remote(spec)


@pytest.fixture(scope="module")
def engines(ray_local, tied_policy):
    """One engine that takes adapters, one that takes merged weights."""
    both = [start_engine(ray_local, tied_policy, spec) for spec in (AdapterSpec(LORA.rank, LORA.alpha), None)]
    ray_local.get([engine.start.remote() for engine in both], timeout=180)
    yield both
    for engine in both:
        ray_local.kill(engine)


def test_adapters_give_the_tokens_of_merged_weights(ray_local, tied_policy, engines):
    torch.manual_seed(0)
    learner, start = Adapted(tied_policy), None
    for version in range(3):
        whole, sent = learner.merged(), learner.sent()
        assert 4 * sent.nbytes < whole.nbytes
        given = [ray_local.put(sent), ray_local.put(whole)]
        updates = [e.update.remote(version, w, list(PROBE)) for e, w in zip(engines, given, strict=True)]
        adapter, merged = ray_local.get(updates, timeout=60)
        expected = learner.logprobs()
        for proof, weights in ((adapter, sent), (merged, whole)):
            assert proof.checksum == weights.checksum
            assert np.abs(proof.logprobs - expected).max() < 1e-4
        if start is None:
            # both were calibrated with the start model, whose adapters add nothing
            start = expected
            assert max(np.abs(proof.start - start).max() for proof in (adapter, merged)) < 1e-4
        else:
            assert adapter.start is None
            assert np.abs(expected - start).mean() > 0.1
        orders = [replace(order, id=100 * version + order.id) for order in tasks(3)]
        one, other = (generate(ray_local, engine, orders) for engine in engines)
        assert one.keys() == other.keys() == {order.id for order in orders}
        for name in one:
            for a, b in zip(one[name], other[name], strict=True):
                assert np.array_equal(a.tokens, b.tokens)
                assert np.abs(a.logprobs - b.logprobs).max() < 1e-3
                assert {v for v, _, _ in a.policy_versions} == {version}
        learner.learn(0.2)


def generate(ray, engine, orders) -> dict[int, list]:
    ray.get(engine.submit.remote(orders), timeout=60)
    found: dict[int, list] = {}
    while len(found) < len(orders):
        found |= dict(ray.get(engine.collect.remote(30.0), timeout=60).finished)
    return found


def test_adapters_that_do_not_arrive_are_detected(ray_local, tied_policy, engines):
    torch.manual_seed(1)
    engine, learner = engines[0], Adapted(tied_policy)

    def attempt(weights, *loads):
        return ray_local.get(engine.attempt.remote(ray_local.put(weights), *loads), timeout=60)

    first = learner.sent()
    before = attempt(first)
    learner.learn(1e-7)
    # too small for the probe's tolerance, and the engine does not react to any change
    assert "tensors changed, first base_model.model" in attempt(learner.sent(), False)
    proof = attempt(learner.sent())
    assert np.abs(proof.logprobs - learner.logprobs()).mean() < 1e-4
    # lora_A alone changes nothing while lora_B is zero: the engine must not be blamed for it
    blank = Adapted(tied_policy)
    attempt(blank.sent())
    changed = copy.deepcopy(blank)
    with torch.no_grad():
        changed.model.get_parameter("model.layers.0.mlp.up_proj.lora_A.default.weight").add_(1)
    blameless = attempt(changed.sent())
    assert "sensitivity" in blameless.seconds
    assert np.abs(blameless.logprobs - before.logprobs).max() < 1e-4

    tensors = learner.sent().tensors()
    misnamed = [(name.replace("layers.0.", "layers.7."), tensor) for name, tensor in tensors]
    assert "adapters have no layer in the engine, first model.layers.7." in attempt(FlatWeights.pack(misnamed))
