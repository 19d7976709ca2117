"""Families of models at tiny sizes, tied and untied: loaded, sharded, updated, adapted, exported, with equal logprobs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from state_digest import state_digest
from transformers import AutoConfig, AutoModelForCausalLM

from kray.config.schema import LoraConfig
from kray.errors import ConfigError
from kray.train.training_rows import step_rows

SIZES = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
# name: (config class, what it needs beyond SIZES, whether it can be packed)
FAMILIES = {
    "qwen3": (transformers.Qwen3Config, {}, True),
    "qwen2": (transformers.Qwen2Config, {}, True),
    "llama": (transformers.LlamaConfig, {}, True),
    "gemma2": (transformers.Gemma2Config, {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0} | WINDOW, True),
    "gemma3": (transformers.Gemma3TextConfig, {"query_pre_attn_scalar": 16} | WINDOW, True),
    "granite": (transformers.GraniteConfig, {"logits_scaling": 3.0}, True),  # does more than a linear layer at its end
    "granite_swa": (transformers.GraniteSWAConfig, {"sliding_window": 4}, True),  # attention sinks
    "bloom": (transformers.BloomConfig, {"n_layer": 3, "n_head": 2}, False),  # its own attention alone is causal
    "mamba": (transformers.MambaConfig, {"state_size": 4}, False),  # no attention: padded
}


@pytest.fixture(params=[(name, tied) for name in FAMILIES for tied in (True, False)], ids=str)
def family(request, tmp_path):
    """(folder, the model in float64 as transformers computes it, can it be packed)."""
    name, tied = request.param
    kind, more, packs = FAMILIES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**SIZES | more, tie_word_embeddings=tied))
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases differ from their start values too
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model"), packs


def exact_logprobs(folder, probe):
    """By transformers' own eager attention, rollout by rollout."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    found = []
    for prompt, response in probe:
        tokens = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            scores = model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        found.append(scores.gather(-1, tokens[0, len(prompt) :, None])[:, 0].numpy())
    return found


@pytest.fixture
def long_probe():
    rng = np.random.default_rng(0)
    prompt = tuple(rng.integers(0, 32, 9).tolist())
    return [(prompt, tuple(rng.integers(0, 32, n).tolist())) for n in (3, 12, 1)] + [((5,), (6, 7))]


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=8.0)], ids=["full", "lora"])
def test_family_trains_and_gathers_its_weights(family, make, train, some_groups, ragged, long_probe, tmp_path, lora):
    folder, packs = family
    if lora is not None and not packs:
        bloom = AutoConfig.from_pretrained(folder).model_type == "bloom"
        # peft adapts no other layers of Mamba
        lora = replace(lora, targets=["query_key_value"] if bloom else ["in_proj", "x_proj"])
    learner = make(folder, replace(train, kl=0.01, activation_checkpointing=True), lora=lora)
    assert learner.layout.packed is packs
    assert packs or learner.describe()["rejected_layouts"], "whoever starts the learner is told that it cannot pack"
    for got, expected in zip(learner.logprobs(long_probe), exact_logprobs(folder, long_probe), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)
    for seed in range(2):
        metrics = learner.update(step_rows(some_groups(seed, ragged), train))
        assert metrics["train/optimizer_steps"] == 1
        assert metrics["train/grad_norm"] > 1e-4
    learner.export(tmp_path / "export")
    _, weights = learner.weights()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert state_digest(weights.tensors()) == state_digest(list(model.named_parameters()))
    for got, expected, before in zip(
        learner.logprobs(long_probe),
        exact_logprobs(tmp_path / "export", long_probe),
        exact_logprobs(folder, long_probe),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, atol=1e-4)
        assert np.abs(got - before).max() > 1e-3  # it has moved


def test_only_adapters_are_trained_and_saved(models, make, train, some_groups, ragged, tmp_path):
    rows = step_rows(some_groups(0, ragged), train)
    lora = LoraConfig(rank=2, targets=["q_proj", "v_proj"])
    learner = make(models[True], lora=lora)
    assert all(".lora_" in name for name, _ in learner.optimizer.named)
    before = dict(learner.state())
    learner.update(rows)
    changed = {name for name, tensor in learner.state() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)
    learner.save(tmp_path / "learner")
    learner.update(rows)
    expected = state_digest(learner.state())
    learner = make(models[True], lora=lora)
    learner.load(tmp_path / "learner")
    learner.update(rows)
    assert state_digest(learner.state()) == expected
    with pytest.raises(Exception, match=r"model\.lora must be as it was"):
        make(models[True]).load(tmp_path / "learner")
    with pytest.raises(ConfigError, match=r"no linear layer is named 'qq_proj'; there are .*q_proj"):
        make(models[True], lora=LoraConfig(targets=["qq_proj"]))
