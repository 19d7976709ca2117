"""The probe's tokens are sampled from the learner's policy."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kray.config.schema import LoraConfig
from kray.driver.probe import Probe
from kray.train.adapter_weights import adapter_weights
from kray.train.lora import save_adapters
from kray.train.probe_sample import sample_tokens

PROMPT = (3, 4, 5)


class Group:
    """One rank in this process, in place of a LearnerGroup."""

    def __init__(self, learner):
        self.learner, self.sampled = learner, 0

    async def sample(self, *arguments):
        self.sampled += 1
        return sample_tokens(self.learner, *arguments)

    async def logprobs(self, rows):
        return self.learner.logprobs(rows)


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_follow_the_policys_distribution(make, models, tied):
    learner = make(models[tied])
    found = [sample_tokens(learner, PROMPT, 1, seed)[0] for seed in range(400)]
    whole = learner.logprobs([(PROMPT, (token,)) for token in range(32)])
    expected = np.exp(np.concatenate(whole))
    shares = np.bincount(found, minlength=32) / len(found)
    # by chance 0.2; all tokens alike would be further away
    assert np.abs(shares - expected).sum() < 0.35
    assert np.abs(expected - 1 / 32).sum() > 0.5


def test_same_seed_gives_the_same_tokens(make, models):
    learner = make(models[True])
    tokens = sample_tokens(learner, PROMPT, 12, 7)
    assert tokens == sample_tokens(learner, PROMPT, 12, 7)
    assert tokens != sample_tokens(learner, PROMPT, 12, 8)
    assert len(tokens) == 12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_probe_is_settled_once(make, models, dtype):
    learner = make(models[True], dtype=dtype)
    group, given = Group(learner), (3, 4, 5, 6, 9, 9, 9, 9)
    probe = Probe(group, dtype, seed=0)
    asyncio.run(probe.settle(given))
    assert probe.tokens[:4] == given[:4]
    assert (probe.tokens == given) == (dtype == "float32")
    assert len(probe.tokens) == len(given)
    settled, start = probe.tokens, probe.start.copy()
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.mul_(1.5)
    asyncio.run(probe.settle((1, 2)))
    assert probe.tokens == settled
    assert np.array_equal(probe.start, start)
    assert np.abs(asyncio.run(probe.logprobs(probe.tokens)) - start).mean() > 0.1
    assert group.sampled == (dtype == "bfloat16")


def test_adapters_that_are_sent_are_those_of_a_peft_folder(make, models, tmp_path):
    lora = LoraConfig(rank=2, alpha=6.0)
    learner = make(models[True], lora=lora)
    gathered, weights = adapter_weights(learner)
    assert (gathered.nbytes, gathered.checksum) == (weights.nbytes, weights.checksum)
    assert 2 * gathered.nbytes < learner.weights()[0].nbytes
    sent = dict(weights.verified())
    plain = dict(learner.model.named_parameters())
    assert len(sent) == sum(".lora_" in name for name in plain)
    with torch.no_grad():
        trained = make_plain(models[True], lora, plain)
    save_adapters(trained, lora, models[True], tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sent.keys() == saved.keys()
    assert all(torch.equal(sent[name], saved[name]) for name in saved)


def make_plain(path, lora, parameters):
    """Return the model with these adapters, not sharded."""
    from kray.train.model import load_policy, whole

    model = load_policy(path, lora=lora)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.copy_(whole(parameters[name].detach()))
    return model
