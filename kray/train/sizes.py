"""Sizes of a model that has been built without memory for its weights."""

from __future__ import annotations

from typing import Any

from kray.config.model_sizes import ModelSizes, Weight
from kray.train.lora import plain_name
from kray.train.model import decoder_layers


def sizes_of(model: Any) -> ModelSizes:
    """Return the sizes of a model; its parameters may be on the meta device.

    Args:
        model: A causal language model of transformers, with or without adapters.
    """
    layers = list(decoder_layers(model))
    layer_of = {id(parameter): k for k, layer in enumerate(layers) for parameter in layer.parameters()}
    named = list(model.named_parameters())
    weights = tuple(
        Weight(
            parameter.shape[0] if parameter.ndim else 1,
            parameter.numel() // max(1, parameter.shape[0]) if parameter.ndim else 1,
            parameter.requires_grad,
            layer_of.get(id(parameter), -1),
        )
        for _, parameter in named
    )
    config = model.config.get_text_config()
    hidden = int(config.hidden_size)
    heads = int(_first(config, ("num_attention_heads",), 1))
    key_heads = int(_first(config, ("num_key_value_heads",), heads))
    head = int(_first(config, ("head_dim",), hidden // heads))
    return ModelSizes(
        weights=weights,
        served=sum(parameter.numel() for name, parameter in named if plain_name(name) is not None),
        vocabulary=int(config.vocab_size),
        layers=len(layers),
        hidden=hidden,
        intermediate=int(_first(config, ("intermediate_size", "n_inner", "ffn_dim"), 4 * hidden)),
        queries=heads * head,
        keys=key_heads * head,
        heads=heads,
        key_heads=key_heads,
    )


def _first(config: Any, names: tuple[str, ...], default: int) -> int:
    """Return the first of these values that is a number; some families give one for each layer."""
    for name in names:
        value = getattr(config, name, None)
        value = max(value, default=None) if isinstance(value, list | tuple) else value
        if isinstance(value, int) and value > 0:
            return value
    return default
