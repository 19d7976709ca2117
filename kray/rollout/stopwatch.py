"""Seconds of the parts of an operation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any


class Stopwatch:
    """Measures the seconds of each part of an operation, from its creation on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def done(self, part: str) -> None:
        """Count the time since the last call, without what `each` has counted meanwhile, as this part's."""
        now = time.monotonic()
        self.seconds[part] = now - self._since
        self._since = now

    def each(self, part: str, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items and count the time that it takes to produce them as this part's."""
        self.seconds[part] = 0.0
        iterator = iter(items)
        while True:
            started = time.monotonic()
            item = next(iterator, None)
            passed = time.monotonic() - started
            self.seconds[part] += passed
            self._since += passed
            if item is None:
                return
            yield item
