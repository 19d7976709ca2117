"""What `--check` predicts of a rank's memory is what FSDP2 and AdamW allocate, within 5 %."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from kray.config import KrayConfig, ModelConfig
from kray.config.memory import rank_memory
from kray.train.model import load_policy
from kray.train.sizes import sizes_of
from kray.train.training_rows import step_rows

RANKS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Large enough that small tensors do not count, with layers that are a small part of it: FSDP2 keeps one gathered.

    Its vocabulary is no multiple of the ranks.
    """
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=65535,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    folder = str(tmp_path_factory.mktemp("memory"))
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def test_prediction_is_what_two_ranks_allocate(model, models, run_ranks, train, some_groups, ragged):
    settings = [("float32", True, 0.1)]
    cases, predicted, sizes = [], [], sizes_of(load_policy(model, empty=True))
    for dtype, reduced, kl in settings:
        setting = replace(train, ranks=RANKS, reduce_each_microbatch=reduced, kl=kl, microbatch_tokens=48)
        rows = step_rows(some_groups(0, ragged), setting)
        if not cases:
            # First a tiny model, for what is imported when it is first needed.
            cases.append({"model": models[True], "train": setting, "dtype": dtype, "rows": rows})
        cases.append({"model": model, "train": setting, "dtype": dtype, "rows": rows})
        config = KrayConfig(model=ModelConfig(path=model, dtype=dtype), train=setting)
        predicted.append(rank_memory(config, sizes))
    variables = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
    results = run_ranks(RANKS, cases, "learner_memory_process.py", 480, **variables)
    # Of the first rank: the others' last shards may be smaller.
    for (dtype, _, _), memory, found in zip(settings, predicted, results[0][1:], strict=True):
        expected = {
            "built": memory.parameters + memory.optimizer + memory.reference,
            # FSDP2 keeps the last gradient that it reduced, that of all outside of the layers, in float32.
            "between": memory.state + 4 * sizes.of_layer(-1),
        }
        assert len(found["between"]) > 1
        # Before the last micro-batch, which reduces what is left.
        got = found | {"between": max(found["between"][:-1])}
        for place, size in expected.items():
            print(f"\n{dtype} {place}: predicted {size:,}, allocated {got[place]:,}: {got[place] / size - 1:+.1%}")
            assert got[place] == pytest.approx(size, rel=0.05), (dtype, place)
    assert {found["interface"] for rank in results for found in rank} == {"lo"}
