"""Packed weights arrive unchanged, and what was altered is named."""

from __future__ import annotations

import pickle
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from weights_of_chance import random_state, same, states

from kray.errors import KrayError
from kray.weight_sync.flat_weights import LANES, FlatWeights, checksum


def sent(weights: FlatWeights) -> FlatWeights:
    """Pass through a pickle with read-only out-of-band buffers, as in Ray's object store."""
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(weights, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(text, buffers=[bytes(buffer) for buffer in buffers])


@given(states)
def test_unpacked_weights_equal_packed(kinds):
    state = random_state(kinds)
    weights = FlatWeights.pack(state)
    arrived = sent(weights)
    assert same(arrived.tensors(), state)
    assert same(list(arrived.verified()), state)
    assert arrived.nbytes == sum(tensor.nbytes for _, tensor in state)
    assert arrived.checksum == weights.checksum


def test_non_contiguous_tensors_are_packed_by_value():
    tensor = torch.arange(12.0).reshape(3, 4).t()
    assert same(FlatWeights.pack([("t", tensor)]).tensors(), [("t", tensor.contiguous())])


@given(st.data())
def test_altered_byte_names_its_tensor(data):
    sizes = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=5))
    weights = FlatWeights.pack(random_state([((size,), torch.float32) for size in sizes]))
    chosen = data.draw(st.integers(0, len(sizes) - 1))
    part = weights.parts[chosen].copy()
    part[data.draw(st.integers(0, len(part) - 1))] ^= data.draw(st.integers(1, 255))
    weights.parts[chosen] = part
    yielded = []
    with pytest.raises(KrayError, match=rf"layers\.{chosen}\.weight arrived with checksum"):
        yielded.extend(weights.verified())
    assert len(yielded) == chosen  # the altered tensor is not yielded


@given(st.integers(1, 4 * LANES), st.data())
def test_moved_and_missing_bytes_change_checksum(size, data):
    """Plain values, as weights can be: what is swapped may differ in the sign alone."""
    values = np.random.default_rng(size).choice(np.float32([0, 1, -1, 2]), size)
    before = checksum(values.view(np.uint8))
    i, j = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    swapped = values.copy()
    swapped[[i, j]] = swapped[[j, i]]
    assert (checksum(swapped.view(np.uint8)) == before) == np.array_equal(swapped, values)
    assert checksum(values.view(np.uint8)[:-1]) != before
    assert checksum(np.zeros(size, np.uint8)) != checksum(np.zeros(size + 1, np.uint8))


@given(st.integers(0, 8 * LANES * 3), st.integers(0, 9))
def test_checksum_matches_its_description(size, seed):
    part = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    words = [int.from_bytes(part[i : i + 8].tobytes(), "little") for i in range(0, size, 8)]
    if size % 8 == 0:
        words.append(0)  # an empty remainder
    lanes = LANES if size // 8 >= LANES else len(words)
    words += [0] * (-len(words) % lanes)
    total, partial = [0] * lanes, [0] * lanes
    for row in range(0, len(words), lanes):
        total = [(a + b) % 2**64 for a, b in zip(total, words[row : row + lanes], strict=True)]
        partial = [(a + b) % 2**64 for a, b in zip(partial, total, strict=True)]
    packed = b"".join(number.to_bytes(8, "little") for number in [*total, *partial])
    assert checksum(part) == zlib.crc32(packed, zlib.crc32(size.to_bytes(8, "little")))


def test_manifest_checksum_covers_names_shapes_and_dtypes():
    tensor = torch.zeros(6)
    others = [("b", tensor), ("a", tensor.reshape(2, 3)), ("a", tensor.int()), ("a", torch.ones(6))]
    sums = {FlatWeights.pack([one]).checksum for one in [("a", tensor), *others]}
    assert len(sums) == 5


def test_missing_tensor_is_detected():
    weights = FlatWeights.pack(random_state([((3,), torch.float32)] * 2))
    weights.parts.pop()
    with pytest.raises(KrayError, match="1 of 2 tensors"):
        list(weights.verified())
