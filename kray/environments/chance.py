"""Reproducible chance for environments of other packages, which draw from Python's and numpy's global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from kray.records import Prompt, derive_seed


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of `random` and numpy for a block of code and restore their states after it.

    Args:
        seed: Any non-negative number; numpy gets its remainder modulo 2^32.
    """
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def position_seed(prompt: Prompt) -> int:
    """Return the seed of a prompt's starting position: the one in its metadata, otherwise one made of its id."""
    return int(prompt.metadata.get("seed", derive_seed("position", prompt.id)))


def numbered(prompt: Prompt) -> int:
    """Return the same seed below 2^31, as third-party environments take it."""
    return position_seed(prompt) % 2**31
