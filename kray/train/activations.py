"""Decoder layers whose activations are computed again in the backward pass, and where their inputs are kept meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint


def recompute(layers: nn.ModuleList, offload: bool) -> None:
    """Make layers keep their inputs alone, and recompute the rest in the backward pass.

    Args:
        layers: The decoder layers.
        offload: Whether inputs are moved to main memory (train.activation_offload). Weights never are.
    """
    for layer in layers:
        # transformers' own switch works in train mode only.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        if offload:
            layer.forward = _inputs_in_main_memory(layer.forward)


def _inputs_in_main_memory(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Page-locked memory, from and to which GPUs copy fastest. What a layer itself saves is discarded by `checkpoint`.
        with save_on_cpu(pin_memory=torch.cuda.is_available()):
            return forward(*args, **kwargs)

    return call
