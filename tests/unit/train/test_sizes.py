"""Sizes are those of the model that would be built, and what autograd keeps is what is estimated."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config

from kray.config import KrayConfig, ModelConfig, TinyPolicyConfig
from kray.config.memory import activation_bytes
from kray.config.model_sizes import tiny_sizes
from kray.config.schema import LoraConfig
from kray.train.lora import add_lora
from kray.train.sizes import sizes_of
from kray.train.tiny_files import tokenizer_of
from kray.train.tiny_policy import make_model

SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}


def qwen2(**changes) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(Qwen2Config(**(SHAPE | {"num_key_value_heads": 2, "vocab_size": 512} | changes)))


def test_a_model_of_seven_billion_parameters_has_them_on_paper():
    shape = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    with torch.device("meta"):
        model = qwen2(**shape, num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False)
    sizes = sizes_of(model)
    assert (sizes.elements, sizes.trained, sizes.served) == (7_615_616_512,) * 3
    assert (sizes.layers, sizes.hidden, sizes.intermediate, sizes.queries, sizes.keys) == (28, 3584, 18944, 3584, 512)
    assert sizes.of_layer(-1) == 2 * 152064 * 3584 + 3584
    assert sizes.largest_layer == (7_615_616_512 - sizes.of_layer(-1)) // 28


def test_tied_embeddings_are_counted_once_and_adapters_not_in_engines():
    plain = qwen2(tie_word_embeddings=True)
    sizes = sizes_of(plain)
    assert sizes.elements == sum(p.numel() for p in plain.parameters())
    add_lora(plain, LoraConfig(rank=4))
    adapted = sizes_of(plain)
    assert adapted.served == sizes.elements
    assert 0 < adapted.trained == adapted.elements - sizes.elements
    # Two matrices for each of seven linear layers.
    assert sum(weight.trained for weight in adapted.weights) == 4 * 7 * 2


@pytest.mark.parametrize(
    "tiny", [TinyPolicyConfig(), TinyPolicyConfig(hidden_size=48, heads=3, kv_heads=1, tie_embeddings=False)]
)
def test_a_tiny_policy_has_its_sizes_before_it_is_made(tiny):
    tokenizer = tokenizer_of(tiny, [])
    made, predicted = sizes_of(make_model(tiny, tokenizer)), tiny_sizes(tiny, len(tokenizer))
    assert predicted.elements == made.elements
    assert [predicted.of_layer(k) for k in range(-1, tiny.layers)] == [made.of_layer(k) for k in range(-1, tiny.layers)]
    assert sum(w.shard(3) for w in predicted.weights) == sum(w.shard(3) for w in made.weights)
    assert (predicted.queries, predicted.keys, predicted.hidden) == (made.queries, made.keys, made.hidden)
    assert predicted.counts == made.counts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_keeps(dtype):
    """Of the decoder and its final norm, with attention that stores no scores; estimated within 10 %."""
    model, tokens = qwen2(num_hidden_layers=4).to(getattr(torch, dtype)), 512
    model.set_attn_implementation("sdpa")
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.base_model(torch.randint(512, (1, tokens)), use_cache=False)[0]
    found = sum(kept.values()) / tokens
    estimated = activation_bytes(KrayConfig(model=ModelConfig(dtype=dtype)), sizes_of(model))
    print(
        f"\n{dtype}: autograd keeps {found:,.0f} bytes a token, estimated {estimated:,}: {estimated / found - 1:+.1%}"
    )
    assert estimated == pytest.approx(found, rel=0.1)
    assert output.requires_grad


def test_families_name_their_shapes_differently():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = sizes_of(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)))
    assert (sizes.hidden, sizes.intermediate, sizes.queries, sizes.keys) == (32, 128, 32, 32)
    assert Qwen3Config().head_dim == 128
