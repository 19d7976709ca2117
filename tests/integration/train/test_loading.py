"""Ranks read their own parts of a model: what they hold, and how little they need for it."""

from __future__ import annotations

import pytest
import torch
from learner_fixtures import VOCABULARY
from state_digest import state_digest
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from kray.config.schema import LoraConfig
from kray.train.model import full_state, load_policy

RANKS = 4
# The process's own noise: arenas of malloc, gloo's buffers.
NOISE = 8 * 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> str:
    """400 MB in one file."""
    config = Qwen3Config(
        vocab_size=4096,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    model.tie_weights()
    assert 350e6 < sum(4 * p.numel() for p in model.parameters()) < 450e6
    folder = str(tmp_path_factory.mktemp("large"))
    model.save_pretrained(folder)
    return folder


def expected(path: str, lora: LoraConfig | None) -> tuple[str, str]:
    """Digests of what one process loads with transformers."""
    torch.manual_seed(7)
    model = load_policy(path, lora=lora)
    adapters = [(name, p.detach()) for name, p in model.named_parameters() if ".lora_" in name]
    return state_digest(full_state(model) + list(model.named_buffers())), state_digest(adapters)


def test_ranks_read_their_own_rows(large, models, run_ranks, tmp_path):
    # No multiple of the ranks; two files and more with an index, in bfloat16; and no safetensors at all.
    odd = AutoModelForCausalLM.from_pretrained(models[True])
    odd.resize_token_embeddings(VOCABULARY + 1)
    odd.to(torch.bfloat16).save_pretrained(tmp_path / "odd", max_shard_size="8KB")
    assert (tmp_path / "odd" / "model.safetensors.index.json").is_file()
    odd.config.save_pretrained(tmp_path / "bin")
    torch.save(odd.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    lora = LoraConfig(rank=2)
    cases = [
        {"model": str(path), "lora": each, "digest": True}
        for path, each in ((models[False], None), (tmp_path / "odd", lora), (tmp_path / "bin", lora))
    ]
    results = run_ranks(RANKS, [*cases, {"model": large, "lora": None, "digest": False}], "learner_loading_process.py")
    for number, case in enumerate(cases):
        found = {(result[number]["digest"], result[number]["adapters"]) for result in results}
        assert found == {expected(case["model"], case["lora"])}, case
    largest = 4 * 3072 * 1024
    for rank, result in enumerate(results):
        peak, held = result[-1]["peak"], result[-1]["held"]
        print(f"\nrank {rank}: holds {held / 2**20:.0f} MiB, needed {peak / 2**20:.0f} MiB at most to load them")
        assert 80e6 < held < 110e6
        assert held * 0.9 < peak <= 1.3 * held + largest + NOISE
