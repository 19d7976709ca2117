"""Seeded edits of texts and files, and calls that may fail in one way only."""

from __future__ import annotations

import random
from typing import Any


def misspelt(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(["", "x", "_", text[at : at + 1]]) + text[at + rng.randint(0, 1) :]


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    at, to = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    noise = bytes(rng.randrange(256) for _ in range(rng.randint(0, 4)))
    return rng.choice(
        [content[:at] + noise + content[at:], content[:at], content[:at] + noise + content[to:], content * 2]
    )


def attempt(expected: type[Exception], call: Any, *arguments: Any) -> tuple[Any, str]:
    """Return (result, "") or (None, message of the expected error); any other error fails the test."""
    try:
        return call(*arguments), ""
    except expected as error:
        assert str(error), "an error without a message"  # noqa: PT017
        return None, str(error)
