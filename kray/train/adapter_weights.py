"""LoRA adapters on their way to engines that take adapters, in place of whole weights (rollout.lora)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from kray.train.lora import peft_name
from kray.train.model import DTYPES, whole
from kray.weight_sync.flat_weights import FlatWeights, Gathered


def adapter_weights(learner: Any) -> tuple[Gathered, FlatWeights]:
    """Gather the adapters in the compute dtype on rank 0; the other ranks return no weights. A collective.

    Args:
        learner: A `Learner` with adapters.

    Returns:
        What `Learner.weights` returns.
    """
    started = time.monotonic()
    state = [(name, tensor.to("cpu")) for name, tensor in _gathered(learner.model, learner.dtype)]
    gathered = time.monotonic()
    weights = FlatWeights.pack(state if learner.rank == 0 else [])
    return Gathered(weights.nbytes, weights.checksum, gathered - started, time.monotonic() - gathered), weights


def _gathered(model: nn.Module, dtype: str) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            yield peft_name(name), whole(parameter.detach()).to(DTYPES[dtype])
