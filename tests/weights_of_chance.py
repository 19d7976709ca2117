"""Weights of any bits, their buckets, and whether two are the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from hypothesis import strategies as st

from kray.weight_sync.buckets import Header, fill, padded, plan_buckets

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


def cut(state, bucket_bytes: int) -> Iterator[tuple[Header, np.ndarray]]:
    """Yield the buckets of a state, each with bytes of its own."""
    plan = plan_buckets([tensor.nbytes for _, tensor in state], bucket_bytes)
    for i in range(plan.count):
        chosen = state[plan.bounds[i] : plan.bounds[i + 1]]
        payload = np.empty(sum(padded(tensor.nbytes) for _, tensor in chosen), dtype=np.uint8)
        yield Header(i, plan.count, fill(payload, chosen)), payload
