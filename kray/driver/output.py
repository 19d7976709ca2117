"""Where the lines of a run go: those that are printed on purpose, and those that modules log under "kray".

At most one handler carries the records of "kray" at a time, so that no line appears twice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kray.text import legible

# The parent of every module's logger.
ROOT = logging.getLogger("kray")


def say(line: str) -> None:
    """Print a line to standard output, at once.

    Lines that nobody can read any more, after a closed terminal or pipe, are dropped: they must not end a run that saves.
    """
    try:
        print(line, flush=True)
    except OSError:
        drop_output()


def drop_output() -> None:
    """Send standard output and standard error nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        # Streams of tests have no descriptor.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class Console:
    """Prints lines to standard output, at once."""

    def print(self, line: str, urgent: bool = False) -> None:
        """Print one line.

        Args:
            line: Text without a line break at its end; what no terminal takes is escaped.
            urgent: The line must not be left out or held back, as a console of many lines may do with others.
        """
        say(legible(line))


class SilentConsole(Console):
    """Prints nothing."""

    def print(self, line: str, urgent: bool = False) -> None:
        """Drop the line."""


class LineHandler(logging.Handler):
    """Gives log records to a console as plain lines; those of a warning or an error begin with "warning: "."""

    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record's message, with its traceback where there is one."""
        try:
            urgent = record.levelno >= logging.WARNING
            self.console.print(("warning: " if urgent else "") + self.format(record), urgent)
        except Exception:
            self.handleError(record)


@contextmanager
def logged_to(console: Console) -> Iterator[None]:
    """Print what is logged under "kray" on this console, in place of the one that has printed it until now."""
    before = [handler for handler in ROOT.handlers if isinstance(handler, LineHandler)]
    level, handler = ROOT.level, LineHandler(console)
    for other in before:
        ROOT.removeHandler(other)
    ROOT.addHandler(handler)
    ROOT.setLevel(logging.INFO)
    try:
        yield
    finally:
        ROOT.removeHandler(handler)
        for other in before:
            ROOT.addHandler(other)
        ROOT.setLevel(level)
