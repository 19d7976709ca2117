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
