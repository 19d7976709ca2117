"""A rank on CPU does not keep something of every shape that it has computed with."""

from __future__ import annotations

import os
import subprocess
import sys

from kray.train.learner_group import CPU_MEMORY

# Bytes of the heap in use after products of 300 shapes, beyond those after 30.
PRODUCTS = """
import ctypes, torch
class Usage(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c d e f used free g".split()]
usage = ctypes.CDLL(None).mallinfo2
usage.restype = Usage
linear = torch.nn.Linear(512, 512, dtype=torch.bfloat16)
for length in range(1, 301):
    linear(torch.ones(8 * length, 512, dtype=torch.bfloat16)).sum().backward()
    if length == 30:
        before = usage().used
print(usage().used - before)
"""


def growth(**environment: str) -> int:
    given = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return int(subprocess.check_output([sys.executable, "-c", PRODUCTS], env=given, text=True, timeout=120))


def test_memory_does_not_grow_with_the_number_of_shapes():
    alone, as_rank = growth(), growth(**CPU_MEMORY)
    print(f"\n{alone / 2**20:.1f} MiB more without the settings of a rank, {as_rank / 2**20:.1f} MiB with them")
    assert as_rank < max(2 * 2**20, alone / 3)
