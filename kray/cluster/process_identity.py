"""Which process is meant, also by another process that reads it later: a pid alone may belong to a newer one by then."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# States of a process in /proc that has ended, and of one that a signal has stopped.
ENDED = ("Z", "X", "x")
STOPPED = "T"


def this_process() -> dict[str, Any]:
    """Return what identifies this process, see `identity`."""
    return identity(os.getpid())


def identity(pid: int) -> dict[str, Any]:
    """Return what identifies a process of this machine: host, machine, pid and its start in clock ticks since the machine's."""
    state = _state(pid)
    started = state[1] if state else 0
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": started}


def is_dead(process: Mapping[str, Any]) -> bool:
    """Return whether a process is known to have ended; False where that cannot be told from here."""
    pid, started, machine = process.get("pid"), process.get("started"), process.get("machine")
    if not isinstance(pid, int) or not started or not machine or machine != _machine():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        # It runs as another user.
        pass
    state = _state(pid)
    return state is not None and (state[0] in ENDED or state[1] != started)


def is_stopped(process: Mapping[str, Any]) -> bool:
    """Return whether a process is known to be stopped by a signal; False where that cannot be told from here."""
    pid, started, machine = process.get("pid"), process.get("started"), process.get("machine")
    if not isinstance(pid, int) or not started or not machine or machine != _machine():
        return False
    return _state(pid) == (STOPPED, started)


def kill(process: Mapping[str, Any]) -> None:
    """Kill a process of this machine, unless it has ended or that cannot be told from here."""
    pid, started, machine = process.get("pid"), process.get("started"), process.get("machine")
    if not isinstance(pid, int) or not started or not machine or machine != _machine():
        return
    state = _state(pid)
    if state is not None and state[1] == started:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def age_s() -> float:
    """Return the seconds since this process started; since this module was imported where that is unknown."""
    state = _state(os.getpid())
    if state is None:
        return time.monotonic() - _IMPORTED
    return time.clock_gettime(time.CLOCK_BOOTTIME) - state[1] / os.sysconf("SC_CLK_TCK")


_IMPORTED = time.monotonic()


def _machine() -> str:
    """Return a name of the boot of this machine and of the namespace of its pids; "" where there is none (not Linux).

    Host names do not tell containers and copied machines apart.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _state(pid: int) -> tuple[str, int] | None:
    """Return a process's state and its start in clock ticks; None where they cannot be read."""
    try:
        # The name, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
