"""A job's main function: expected failures end with one message and an exit code."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable

from kray.cluster.session import never_auto_connect
from kray.config import redact
from kray.driver.output import Console, drop_output, logged_to
from kray.driver.stop_signals import caught, ignored_while_ending, interrupt
from kray.errors import ConfigError, DataError, KrayError
from kray.text import legible, take_any_text


def guarded(main: Callable[[], int | None]) -> None:
    """Run a job's main; expected failures end with one message and exit code 2 (bad input), 1 (failed run), 130 (Ctrl-C,
    SIGTERM or SIGHUP) or 141 (the reader of what is printed has gone).

    Modules of the current folder can be named in the configuration (reward.verifier: mine:judge).
    """
    sys.path.insert(1, os.getcwd())
    take_any_text(sys.stdout, sys.stderr)
    never_auto_connect()
    ignored_while_ending()
    try:
        with logged_to(Console()), caught(interrupt):
            sys.exit(main() or 0)
    except ConfigError as error:
        sys.exit(_complain(f"config error: {error}", 2))
    except DataError as error:
        sys.exit(_complain(f"data error: {error}", 2))
    except KrayError as error:
        sys.exit(_complain(f"error: {error}", 1))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted", 130))
    except BrokenPipeError:
        if not _reader_gone():
            raise
        # Else Python complains when it flushes at its end.
        drop_output()
        sys.exit(128 + signal.SIGPIPE)


def _reader_gone() -> bool:
    """Return whether what is printed cannot be read any more, as after `| head`."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)  # errors are always reported
    return any(events & select.POLLERR for _, events in watched.poll(0))


def _complain(message: str, code: int) -> int:
    try:
        print(legible(redact(message)), file=sys.stderr, flush=True)
    except OSError:
        # The terminal was closed.
        drop_output()
    return code
