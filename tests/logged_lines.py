"""The lines that a run would show: what modules log and what is printed on a console, as a list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kray.driver.output import Console, logged_to


class Lines(Console):
    """A console that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, line: str, urgent: bool = False) -> None:
        self.lines.append(line)


@contextmanager
def logged_lines() -> Iterator[list[str]]:
    """What is logged inside the block."""
    console = Lines()
    with logged_to(console):
        yield console.lines
