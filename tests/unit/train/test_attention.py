"""Options of the attention that transformers calls: sinks, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from kray.errors import ConfigError
from kray.train.attention import packed_attention
from kray.train.packed_layout import packed_layout

HEADS, KV_HEADS, D = 4, 2, 8
PROMPT, RESPONSES = 5, (3, 7, 1)


class Module(torch.nn.Module):
    """As a layer of a model; gpt_oss looks its sinks up here."""

    is_causal = True
    num_key_value_groups = HEADS // KV_HEADS
    config = SimpleNamespace(model_type="new_kind")

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.sinks = torch.nn.Parameter(torch.randn(HEADS, dtype=torch.float64) * 3)


def qkv(rows: int, tokens: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    sizes = (HEADS, KV_HEADS, KV_HEADS)
    return [torch.randn(rows, n, tokens, D, dtype=torch.float64, requires_grad=True) for n in sizes]


def causal(tokens: int, window: int | None) -> torch.Tensor:
    """What is added to scores."""
    back = torch.arange(tokens)[:, None] - torch.arange(tokens)
    seen = (back >= 0) & (back < (window or tokens))
    return torch.zeros(tokens, tokens, dtype=torch.float64).masked_fill(~seen, -torch.inf)[None, None]


@pytest.mark.parametrize("window", [None, 3])
def test_packed_sinks_are_those_of_each_rollout_alone(window):
    module = Module()
    segments, places, end = [(0, PROMPT, 0, 0)], [(range(PROMPT), range(PROMPT))], PROMPT
    for size in RESPONSES:
        segments.append((end, size, 0, PROMPT))
        places.append((range(end, end + size), [*range(PROMPT), *range(end, end + size)]))
        end += size
    tensors = qkv(1, end)
    plan = packed_layout(segments, end)
    out, _ = packed_attention(module, *tensors, None, sliding_window=window, s_aux=module.sinks, layout=plan)
    expected = torch.zeros_like(out)
    for own, seen in places:
        alone = [tensor[:, :, list(seen)] for tensor in tensors]
        found, _ = eager_attention_forward(module, *alone, causal(len(seen), window), scaling=D**-0.5)
        expected[:, list(own)] = found[:, -len(own) :]
    torch.testing.assert_close(out, expected)
    for got, wanted in zip(
        *(torch.autograd.grad(each.square().sum(), [*tensors, module.sinks]) for each in (out, expected)), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "mask", [None, causal(9, None), causal(9, 4), causal(9, 4) == 0], ids=["none", "all", "window", "bool"]
)
def test_padded_sinks_are_the_models_own(mask):
    module, tensors = Module(), qkv(2, 9)
    added = causal(9, None) if mask is None else mask
    added = torch.zeros(mask.shape).double().masked_fill(~mask, -torch.inf) if added.dtype == torch.bool else added
    expected, _ = eager_attention_forward(module, *tensors, added, scaling=D**-0.5)
    out, _ = packed_attention(module, *tensors, mask, s_aux=module.sinks)
    torch.testing.assert_close(out, expected)
    without, _ = packed_attention(module, *tensors, mask)
    assert (without - expected).abs().max() > 0.1


@pytest.mark.parametrize("plan", [None, packed_layout([(0, 9, 0, 0)], 9)], ids=["padded", "packed"])
@pytest.mark.parametrize("option", ["learned_bias", "indices", "block_indices", "deterministic"])
def test_an_unknown_option_is_refused_by_name(plan, option):
    with pytest.raises(
        ConfigError, match=rf"type new_kind calls .*attention with the option {option}, unknown to kray"
    ):
        packed_attention(Module(), *qkv(1, 9), None, layout=plan, **{option: torch.ones(1)})


@pytest.mark.parametrize("plan", [None, packed_layout([(0, 9, 0, 0)], 9)], ids=["padded", "packed"])
def test_options_without_effect_are_taken(plan):
    module, tensors = Module(), qkv(1, 9)
    options = {"position_ids": torch.arange(9)[None], "use_cache": False, "learned_bias": None, "is_causal": True}
    plain, with_options = (packed_attention(module, *tensors, None, layout=plan, **o)[0] for o in ({}, options))
    assert torch.equal(plain, with_options)


def test_packed_tokens_are_never_read_as_if_causal():
    with pytest.raises(ConfigError, match="packed attention with the option is_causal"):
        packed_attention(Module(), *qkv(1, 9), None, layout=packed_layout([(0, 9, 0, 0)], 9), is_causal=False)
    with pytest.raises(ConfigError, match="packed attention with the option position_bias"):
        packed_attention(
            Module(), *qkv(1, 9), None, layout=packed_layout([(0, 9, 0, 0)], 9), position_bias=torch.ones(1)
        )


def test_a_bias_of_positions_counts_in_padded_rows():
    tensors, bias = qkv(1, 9), torch.randn(1, HEADS, 9, 9, dtype=torch.float64)
    out, _ = packed_attention(Module(), *tensors, None, position_bias=bias)
    expected, _ = packed_attention(Module(), *tensors, causal(9, None) + bias)
    torch.testing.assert_close(out, expected)
