"""Ranks that divide the tokens of a micro-batch learn what one rank learns, whatever the lengths and the model's heads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from rank_comparison import compare
from transformers import AutoModelForCausalLM, PretrainedConfig

from kray.config.schema import LoraConfig
from kray.train.training_rows import step_rows

VOCABULARY = 32
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
SOFT = {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}


def saved(kind: type[PretrainedConfig], folder: Path, **values) -> str:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**SIZES | values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def long_rollout(some_groups):
    """long_rollout(seed, prompt, response): a step of one rollout of so many tokens."""

    def build(seed: int, prompt: int, response: int):
        rng = np.random.default_rng(seed)
        groups = some_groups(seed, [[1.0]])
        groups[0].belief = (1.0, 2.0)  # without it a single rollout has no advantage
        groups[0].prompt_tokens = tuple(rng.integers(0, VOCABULARY, prompt).tolist())
        rollout = groups[0].rollouts[0]
        rollout.tokens = rng.integers(0, VOCABULARY, response).astype(np.int32)
        rollout.logprobs = np.full(response, -np.log(VOCABULARY), np.float32)
        return groups

    return build


@pytest.fixture
def case(train, probe):
    """case(model, steps, ...): what learner_rank_process.py runs."""

    def build(model: str, steps: list, lora: LoraConfig | None = None, **changes) -> dict:
        setting = replace(train, **changes)
        rows = [step_rows(groups, setting) for groups in steps]
        return {"model": model, "train": setting, "lora": lora, "rows": rows, "probe": probe}

    return build


def test_four_ranks_learn_as_one(
    run_ranks, make, case, some_groups, some_conversations, ragged, long_rollout, tmp_path
):
    """One rollout over four ranks, some without a target; two parts on two copies; parts across the shards of a copy."""
    plain = saved(transformers.Qwen3Config, tmp_path / "plain", tie_word_embeddings=False)
    gemma = saved(transformers.Gemma2Config, tmp_path / "gemma", **SOFT | WINDOW)
    # Fewer key heads than ranks, and a number of them that does not divide the ranks.
    narrow = saved(
        transformers.LlamaConfig, tmp_path / "narrow", hidden_size=48, num_attention_heads=12, num_key_value_heads=3
    )
    single = [long_rollout(0, 7, 90), long_rollout(1, 60, 3)]
    two = [some_groups(0, ragged), some_conversations(1, ragged)]
    belief = {"baseline": "belief"}
    cases = [
        case(plain, single, **belief, context_parallel=4, kl=0.1, epochs=2, tis=1.5),
        case(plain, two, context_parallel=2, loss="gspo", updates=2, reduce_each_microbatch=True),
        case(gemma, two, context_parallel=4, replicas=2, activation_checkpointing=True, kl=0.05),
        case(narrow, [*single, []], LoraConfig(rank=2), **belief, context_parallel=4, kl=0.1, updates=2, epochs=2),
    ]
    assert [[len(rows) for rows in each["rows"]] for each in (cases[0], cases[3])] == [[1, 1], [1, 1, 0]]
    compare(run_ranks, make, 4, cases, tmp_path)


def test_two_ranks_learn_as_one(run_ranks, make, case, models, some_groups, ragged, long_rollout, tmp_path):
    """One key head for both ranks; attention sinks; all logits of a part."""
    sinks = saved(transformers.GraniteSWAConfig, tmp_path / "sinks", sliding_window=4)
    scaled = saved(transformers.GraniteConfig, tmp_path / "scaled", logits_scaling=3.0)
    two = [some_groups(0, ragged), some_groups(1, ragged)]
    cases = [
        case(models[True], two, context_parallel=2, activation_checkpointing=True, activation_offload=True),
        case(sinks, two, context_parallel=2, loss="cispo", updates=2),
        case(scaled, [long_rollout(0, 5, 60)], baseline="belief", context_parallel=2),
    ]
    compare(run_ranks, make, 2, cases, tmp_path)


def test_what_is_kept_for_the_backward_pass_is_divided(run_ranks, case, long_rollout, tmp_path):
    """Two rollouts, one for each rank or one after the other on both.

    Before that models that cannot be divided are refused, and in the end an exchange without partner ends in time.
    """
    model = saved(transformers.Qwen3Config, tmp_path / "model", num_key_value_heads=4, max_position_embeddings=2048)
    steps = [[*long_rollout(0, 1500, 24), *long_rollout(1, 1500, 24)]]
    setting = {"baseline": "belief", "microbatch_tokens": 1600}
    cases = [case(model, steps, **setting, context_parallel=together) for together in (1, 2)]
    odd = saved(
        transformers.LlamaConfig, tmp_path / "odd", hidden_size=24, num_attention_heads=3, num_key_value_heads=1
    )
    bloom = saved(transformers.BloomConfig, tmp_path / "bloom", n_layer=2, n_head=2)
    refused = [case(each, steps, context_parallel=2) for each in (odd, bloom)]
    *reasons, alone, divided = zip(*run_ranks(2, refused + cases, "learner_activation_process.py"), strict=True)
    for kind, reason, found in zip(
        ("llama", "bloom"), ("does not divide 3 attention heads", "does not go through"), reasons, strict=True
    ):
        for each in found:
            assert f"a model of type {kind} cannot be trained with train.context_parallel 2, which" in each["refused"]
            assert reason in each["refused"]
    (whole,) = {kept for found in alone for kept in found["kept"]}
    for found in divided:
        assert len(found["kept"]) == 2
        for kept in found["kept"]:
            print(f"\nkept for the backward pass: {kept / whole:.2f} of {whole / 2**20:.1f} MiB")
            assert 0.45 < kept / whole < 0.6
    assert divided[0]["error"]
    assert 1.5 < divided[0]["waited_s"] < 5
