"""Buckets hold the same weights as one piece, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from weights_of_chance import cut, random_state, same, states

from kray.errors import KrayError
from kray.weight_sync.buckets import ALIGNMENT, Bucket, Header, fill, joined, padded, plan_buckets
from kray.weight_sync.flat_weights import FlatWeights


def unpack(header: Header, payload: np.ndarray) -> FlatWeights:
    spans = Bucket("", 0, len(payload), 0, list(header.entries)).spans()
    return FlatWeights(list(header.entries), [payload[start : start + length] for start, length in spans])


@given(states, st.integers(1, 4000))
def test_buckets_hold_what_one_piece_holds(kinds, bucket_bytes):
    state = random_state(kinds)
    found = list(cut(state, bucket_bytes))
    assert [header.index for header, _ in found] == list(range(len(found)))
    assert {header.count for header, _ in found} <= {len(found)}
    arrived = joined(unpack(Header.decode(header.encode()), payload) for header, payload in found)
    assert same(list(arrived.verified()), state)
    assert arrived.checksum == FlatWeights.pack(state).checksum
    assert all(header.nbytes == len(payload) for header, payload in found)


@given(st.lists(st.integers(0, 5000), max_size=30), st.integers(1, 6000))
def test_every_tensor_is_in_one_bucket_and_only_a_large_one_exceeds_the_size(sizes, bucket_bytes):
    plan = plan_buckets(sizes, bucket_bytes)
    assert plan.bounds[0] == 0
    assert plan.bounds[-1] == len(sizes)
    assert plan.count >= 1
    loads = []
    for start, stop in zip(plan.bounds, plan.bounds[1:], strict=False):
        load = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes[start:stop])
        assert load <= bucket_bytes or sum(size > 0 for size in sizes[start:stop]) == 1
        loads.append(load)
    assert plan.capacity == max(loads)


def test_altered_byte_of_a_bucket_is_detected():
    state = random_state([((300,), torch.float32)] * 4)
    header, payload = list(cut(state, 2500))[1]
    payload[1300] ^= 4
    with pytest.raises(KrayError, match=r"layers\.3\.weight arrived with checksum"):
        list(unpack(header, payload).verified())


def test_bytes_that_are_no_header_are_refused():
    for text in (b"", b"[]", b"[0, 1, [[1, 2]]]", np.random.default_rng(0).bytes(40)):
        with pytest.raises(KrayError, match="header of a bucket"):
            Header.decode(text)


@given(states)
def test_floats_are_cast_while_they_are_copied(kinds):
    state = random_state(kinds)
    cast = [(name, tensor.bfloat16() if tensor.is_floating_point() else tensor) for name, tensor in state]
    payload = np.zeros(sum(padded(tensor.nbytes) for _, tensor in cast), dtype=np.uint8)
    arrived = unpack(Header(0, 1, fill(payload, state, torch.bfloat16)), payload)
    assert [(name, tensor.dtype) for name, tensor in arrived.verified()] == [(n, t.dtype) for n, t in cast]
    for (_, got), (_, expected) in zip(arrived.tensors(), cast, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
