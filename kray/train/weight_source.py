"""The policy's weights as engines get them, tensor by tensor: what buckets are filled from.

Tensors, order and bits are those of `model.gathered_state`. Floats are cast before they are gathered, where that is the same:
adapters are merged in float32, after it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kray.train.lora import lora_merges, plain_name
from kray.train.model import DTYPES, state_tensors


class WeightSource:
    """Names, sizes and values of the weights."""

    def __init__(self, model: nn.Module, dtype: str):
        """List the weights; nothing is gathered.

        Args:
            model: The model, sharded or not.
            dtype: Dtype of floating-point tensors.
        """
        self.dtype = DTYPES[dtype]
        self._merge_of = lora_merges(model)
        named = [(name, plain_name(name), tensor) for name, tensor in state_tensors(model)]
        self._tensors = [(name, plain, tensor.detach()) for name, plain, tensor in named if plain is not None]

    def sizes(self) -> list[int]:
        """Return the bytes of each tensor as it is sent."""
        return [tensor.numel() * self._dtype_of(tensor).itemsize for _, _, tensor in self._tensors]

    def take(self, start: int, stop: int) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, whole tensor on the model's device), one at a time. A collective of all ranks."""
        for name, plain, tensor in self._tensors[start:stop]:
            if name in self._merge_of:
                yield plain, self._merge_of[name](_whole(tensor), _whole).to(self.dtype)
            else:
                yield plain, _whole(tensor.to(self._dtype_of(tensor)))

    def _dtype_of(self, tensor: Tensor) -> torch.dtype:
        return self.dtype if tensor.is_floating_point() else tensor.dtype


def _whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor: itself where one rank holds all of it, else gathered. A collective."""
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.to_local() if tensor.device_mesh.size() == 1 else tensor.full_tensor()
