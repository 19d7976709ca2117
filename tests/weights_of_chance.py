"""Weights of any bits, and whether two are the same."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
states = st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=6)


def random_state(kinds, seed: int = 0) -> list[tuple[str, torch.Tensor]]:
    """Tensors of any bits, also those of NaNs."""
    rng = np.random.default_rng(seed)
    state = []
    for i, (shape, dtype) in enumerate(kinds):
        raw = rng.integers(0, 2 if dtype == torch.bool else 256, int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
        tensor = torch.from_numpy(raw).view(dtype).reshape(shape) if raw.size else torch.empty(shape, dtype=dtype)
        state.append((f"layers.{i}.weight", tensor))
    return state


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        a_name == b_name
        and (a.shape, a.dtype) == (b.shape, b.dtype)
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
        for (a_name, a), (b_name, b) in zip(one, other, strict=True)
    )
