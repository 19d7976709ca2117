"""Another process reads, bucket by bucket, the tensors that were packed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
import torch

from kray.errors import KrayError
from kray.weight_sync.flat_weights import FlatWeights
from kray.weight_sync.shared_buckets import SharedBuckets

# Reads pickled buckets from its input, one at a time, and answers each with the tensors' names and sums.
READER = """
import pickle, sys
while True:
    try:
        bucket = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    print([(name, str(tensor.dtype), tuple(tensor.shape), float(tensor.double().sum())) for name, tensor in bucket])
    sys.stdout.flush()
"""


def state(scale: float = 1.0) -> list[tuple[str, torch.Tensor]]:
    found = [(f"layer.{i}", scale * torch.arange(10 + 37 * i, dtype=torch.float32)) for i in range(9)]
    return [*found, ("scalar", torch.tensor(3.0)), ("none", torch.zeros(0, 4)), ("half", torch.ones(3, 5).bfloat16())]


def described(tensors) -> list[tuple]:
    return [(name, str(t.dtype), tuple(t.shape), float(t.double().sum())) for name, t in tensors]


@pytest.mark.parametrize("bucket_bytes", [1, 700, 2**20])
def test_another_process_reads_what_was_packed(bucket_bytes):
    buckets, read = SharedBuckets(bucket_bytes), []
    reader = subprocess.Popen([sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reader.stdin is not None
    assert reader.stdout is not None
    with reader:
        # The memory of the first version is used again, the third needs more.
        for weights in (state(), state(-2.0), [*state(), ("large", torch.ones(5000))]):
            sent = 0
            for bucket in buckets.fill(FlatWeights.pack(weights)):
                pickle.dump(bucket, reader.stdin)
                reader.stdin.flush()
                read += eval(reader.stdout.readline())
                sent += 1
            assert read == described(weights)
            assert sent == 1 if bucket_bytes == 2**20 else sent > 1
            read = []
        reader.stdin.close()


def test_a_bucket_is_at_most_so_large_unless_a_tensor_is():
    weights = FlatWeights.pack(state())
    largest = max(part.nbytes for part in weights.parts)
    for limit in (largest + 64, 3 * largest):
        for bucket in SharedBuckets(limit).fill(weights):
            assert sum(length for _, length in bucket.spans()) <= limit
            assert all(offset % 64 == 0 for offset, _ in bucket.spans())
    assert [list(bucket) for bucket in SharedBuckets(64).fill(FlatWeights([], []))] == [[]]


def test_a_changed_byte_is_detected_by_the_reader():
    buckets = SharedBuckets(2**20)
    (bucket,) = buckets.fill(FlatWeights.pack(state()))
    assert dict(bucket).keys() == dict(state()).keys()
    buckets._memory[bucket.spans()[3][0] + 5] ^= 1
    with pytest.raises(KrayError, match=r"layer\.3 arrived with checksum"):
        list(bucket)


def test_a_missing_tensor_is_detected_before_anything_is_handed_on():
    weights = FlatWeights.pack(state())
    with pytest.raises(KrayError, match="11 of 12 tensors arrived"):
        next(SharedBuckets(2**20).fill(FlatWeights(weights.manifest, weights.parts[:-1])))


def test_a_reader_tells_its_own_tensors_from_those_of_the_bucket():
    (bucket,) = SharedBuckets(2**20).fill(FlatWeights.pack(state()))
    for _, tensor in bucket:
        if tensor.numel():
            assert bucket.holds(tensor)
            assert not bucket.holds(tensor.clone())
    assert not bucket.holds(torch.zeros(3, device="meta"))


def test_nothing_is_left_in_a_folder():
    before = set(os.listdir("/dev/shm"))
    (bucket,) = SharedBuckets(2**20).fill(FlatWeights.pack(state()))
    assert set(os.listdir("/dev/shm")) <= before
    assert bucket.path.startswith(f"/proc/{os.getpid()}/fd/")
