"""Real vLLM engines that fail to load weights are detected."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kray.weight_sync.flat_weights import FlatWeights
from kray.weight_sync.proof import Proof
from kray.weight_sync.tolerance import TOLERANCE

PROBE = tuple(int(token) for token in np.random.default_rng(0).integers(2, 40, 24))


class Policy:
    """The learner's side, in plain transformers."""

    def __init__(self, folder, dtype: str):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    @torch.no_grad()
    def logprobs(self) -> np.ndarray:
        logits = self.model(torch.tensor([PROBE])).logits[0].float()
        return logits.log_softmax(-1)[:-1].gather(1, torch.tensor(PROBE[1:])[:, None])[:, 0].numpy()

    @torch.no_grad()
    def change(self, amount: float) -> None:
        for parameter in self.model.parameters():
            parameter.mul_(1 + amount * torch.randn_like(parameter))

    def packed(self) -> FlatWeights:
        return FlatWeights.pack([(name, p.detach().clone()) for name, p in self.model.named_parameters()])


def start_faulty_engine(ray, folder, dtype: str):
    """An engine that loads weights wrongly on demand; `attempt` returns the proof or the error message."""
    from kray.rollout.engine import Engine
    from kray.rollout.engine_spec import EngineSpec

    class Faulty(Engine):
        def attempt(self, weights, fault="", old=None):
            return self._command(self._try, weights, fault, old)

        def _try(self, weights, fault, old):
            self.fault, self.old = fault, old
            try:
                return self._update(0, weights, list(PROBE))
            except Exception as error:
                return str(error)

        def _load(self, weights, clock):
            if self.fault != "load nothing":
                super()._load(weights, clock)

        def _for_vllm(self, weights, clock):
            faulty = {"drop one": lambda name, tensor: None, "stale one": lambda name, tensor: self.old[name]}
            change, name_of = faulty.get(self.fault), "model.embed_tokens.weight"
            for tensors in super()._for_vllm(weights, clock):
                if change is not None:
                    given = [(name, change(name, t) if name == name_of else t) for name, t in tensors]
                    tensors = [(name, t) for name, t in given if t is not None]
                yield tensors

    spec = EngineSpec(str(folder), dtype, 128, 16, 1, 0, 0.1, 0.0, eager=True, seed=0)
    actor = ray.remote(max_concurrency=2, concurrency_groups={"commands": 1})(Faulty)
    return actor.options(num_cpus=1, runtime_env={"env_vars": spec.environment()}).remote(spec)


@pytest.mark.parametrize(("kind", "dtype"), [("tied", "float32"), ("untied", "bfloat16")])
def test_engine_that_loads_no_weights_is_detected(ray_local, kind, dtype, request):
    policy = request.getfixturevalue(f"{kind}_policy")
    learner, tolerance = Policy(policy, dtype), TOLERANCE[dtype]
    actor = start_faulty_engine(ray_local, policy, dtype)

    def attempt(weights, *fault):
        return ray_local.get(actor.attempt.remote(ray_local.put(weights), *fault), timeout=180)

    def gap(proof: Proof) -> float:
        return float(np.abs(proof.logprobs - learner.logprobs()).mean())

    first = learner.packed()
    before = attempt(first)
    assert before.checksum == first.checksum
    assert gap(before) < (1e-4 if dtype == "float32" else tolerance)

    again = attempt(first)  # a step that changed nothing is no reason for doubt, and gives the same bits
    assert np.array_equal(again.logprobs, before.logprobs)
    assert list(again.seconds) == ["verify", "load", "probe"]

    learner.change(2e-3 if dtype == "bfloat16" else 1e-6)  # less than the probe resolves
    second = learner.packed()
    assert gap(before) < tolerance
    assert "tensors changed, first model" in attempt(second, "load nothing")

    honest = attempt(second)
    assert honest.checksum == second.checksum != first.checksum
    assert not np.array_equal(honest.logprobs, before.logprobs)

    if "lm_head.weight" in dict(second.tensors()):  # untied: tokens that the probe does not use can change unseen
        with torch.no_grad():
            learner.model.get_input_embeddings().weight[47] += 1
        unseen = attempt(learner.packed())
        assert "sensitivity" in unseen.seconds
        assert np.array_equal(unseen.logprobs, honest.logprobs)

    old = {"model.embed_tokens.weight": dict(learner.packed().tensors())["model.embed_tokens.weight"].clone()}
    learner.change(0.3)
    assert gap(attempt(learner.packed(), "stale one", old)) > tolerance
    assert gap(attempt(learner.packed())) < tolerance
    assert "1 parameters received none, first model.embed_tokens.weight" in attempt(learner.packed(), "drop one")
    ray_local.kill(actor)


@pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="vLLM has 8-bit caches on CPUs with AVX-512 alone")
def test_engine_with_an_8_bit_cache_proves_its_weights(ray_local, tied_policy):
    from kray.config.rounding import ROUNDED_TOLERANCE
    from kray.rollout.engine import Engine
    from kray.rollout.engine_spec import EngineSpec

    options = {"kv_cache_dtype": "fp8"}
    spec = EngineSpec(str(tied_policy), "float32", 128, 16, 1, 0, 0.1, 0.0, eager=True, seed=0, vllm=options)
    actor = ray_local.remote(max_concurrency=2, concurrency_groups={"commands": 1})(Engine)
    actor = actor.options(num_cpus=1, runtime_env={"env_vars": spec.environment()}).remote(spec)
    learner = Policy(tied_policy, "float32")
    ray_local.get(actor.start.remote(), timeout=180)
    gaps = []
    for version in range(2):
        learner.change(0.1 * version)
        weights = learner.packed()
        proof = ray_local.get(actor.update.remote(version, ray_local.put(weights), list(PROBE)), timeout=60)
        assert proof.checksum == weights.checksum
        gaps.append(float(np.abs(proof.logprobs - learner.logprobs()).mean()))
    # More than without rounding, and less than what is allowed.
    assert 1e-3 < min(gaps) <= max(gaps) < ROUNDED_TOLERANCE
    ray_local.kill(actor)
