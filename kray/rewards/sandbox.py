"""The sandbox: runs one untrusted program as one confined process, and ends it.

Laws: `run` returns by its deadline and about a second; nothing that it started is alive then, and nothing that the program
wrote is left; the program gets none of this process's environment, files or descriptors; its output is read up to a
bound. What confines it is in kray/rewards/confined; this side watches. Linux only.
The process dies with the thread that called `run`, so that killing a scoring process is enough.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import selectors
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ISOLATION = ("strict", "best_effort")
_CONFINED = Path(__file__).parent / "confined"
_STDERR_BYTES = 4096  # its end is kept, for people
_END_WAIT_S = 5.0  # for a killed process to be gone

log = logging.getLogger(__name__)
_told: set[str] = set()  # missing walls that have been warned of in this process


class IsolationError(RuntimeError):
    """A wall that the program must be behind cannot be had here."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one process. memory_mib: address space; output_kib: of standard output, and of the results; file_mib: of all
    that it writes to its folder."""

    memory_mib: int = 512
    output_kib: int = 1024
    file_mib: int = 16

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"code: {name} must be a whole number of at least 1, not {value!r}")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended. failure: "" when it ended by itself with exit code 0, else why not, one line.

    results: one per expression that was reached, {"value": ...} (see confined/__main__.py: encode) or {"error": ...}.
    """

    failure: str
    output: bytes
    results: list[dict[str, Any]]


def run(
    program: str,
    deadline: float,
    limits: Limits = Limits(),
    stdin: bytes = b"",
    expressions: Sequence[str] | None = None,
    setup: str = "",
    isolation: str = "strict",
    packages: bool = False,
) -> Ended:
    """Run a Python program until it ends, breaks a limit, or the deadline (monotonic seconds) has come.

    expressions: None runs it as a script on `stdin`; else they are evaluated one after the other when the program and
    `setup` have run. packages: it may import what is installed here, not only the standard library.
    isolation: "strict" raises IsolationError, before anything is run, where a wall is missing; "best_effort" warns once.
    """
    if isolation not in ISOLATION:
        raise ValueError(f"code: isolation must be one of {', '.join(ISOLATION)}, not {isolation!r}")
    if sys.platform != "linux":
        raise IsolationError(f"the code verifier's sandbox needs Linux, not {sys.platform}")
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        return Ended("timeout", b"", [])
    with tempfile.TemporaryDirectory(prefix="kray-sandbox-", ignore_cleanup_errors=True) as folder:
        order = {
            "program": program,
            "expressions": None if expressions is None else list(expressions),
            "setup": setup,
            "strict": isolation == "strict",
            "limits": {"cpu_s": math.ceil(left_s) + 1, **asdict(limits)},
            "folder": folder,
            "packages": site.getsitepackages() if packages else [],
        }
        watched = _Watched(order, stdin, limits)
        try:
            watched.watch(deadline)
        finally:
            watched.end()
        return watched.ended(isolation == "strict")


class _Watched:
    """The confined process, its three pipes and what has come out of them."""

    def __init__(self, order: dict[str, Any], stdin: bytes, limits: Limits) -> None:
        self._limits = limits
        self._failure = ""
        self._output, self._errors, self._results = bytearray(), bytearray(), bytearray()
        results, results_end = os.pipe()
        reading = open(results, "rb", 0)  # noqa: SIM115  # closed by `end`
        descriptors = [results_end]
        try:
            descriptors += [_in_memory(json.dumps(order).encode()), _in_memory(stdin)]
            self._popen = subprocess.Popen(
                [
                    sys.executable,
                    "-S",
                    "-s",
                    str(_CONFINED),
                    str(descriptors[1]),
                    str(results_end),
                    str(os.getpid()),
                ],
                stdin=descriptors[2],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=descriptors[:2],
                env=_environment(order["folder"]),
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            reading.close()
            raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._pipes = {
            self._popen.stdout: self._output,
            self._popen.stderr: self._errors,
            reading: self._results,
        }

    def watch(self, deadline: float) -> None:
        """Read until all pipes are closed and the process has ended, a bound is passed or the deadline has come."""
        most = self._limits.output_kib << 10
        with selectors.DefaultSelector() as selector:
            for pipe in self._pipes:
                selector.register(pipe, selectors.EVENT_READ)  # type: ignore[arg-type]
            while selector.get_map():
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    self._failure = "timeout"
                    return
                for key, _ in selector.select(left_s):
                    into = self._pipes[key.fileobj]  # type: ignore[index]
                    data = key.fileobj.read(1 << 16)  # type: ignore[union-attr]
                    if not data:
                        selector.unregister(key.fileobj)
                    into += data
                    if into is self._errors:
                        del into[:-_STDERR_BYTES]
                    elif len(into) > most:
                        self._failure = f"more than {self._limits.output_kib} KiB of output"
                        return
        try:
            self._popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._failure = "timeout"

    def end(self) -> None:
        """Kill the process, and without the filter that forbids them also those of its session; wait until it is gone."""
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            try:
                self._popen.wait(_END_WAIT_S)
            except subprocess.TimeoutExpired:
                log.error("code verifier: process %d is not gone %g s after SIGKILL", self._popen.pid, _END_WAIT_S)
        for pipe in self._pipes:
            pipe.close()  # type: ignore[union-attr]

    def ended(self, strict: bool) -> Ended:
        """Raises IsolationError when a wall is missing and all must stand."""
        results = []
        for line in bytes(self._results).split(b"\n")[:-1]:
            try:
                result = json.loads(line)
            except (ValueError, RecursionError):
                result = None
            results.append(result if isinstance(result, dict) else {"error": "a result that cannot be read"})
        if results:  # the first line comes before any of the program's
            _tell(list(results.pop(0).get("missing", [])), strict)
        elif not self._failure:
            raise IsolationError(f"the sandbox did not start: {_last_line(self._errors) or self._popen.returncode}")
        return Ended(self._failure or self._exit(), bytes(self._output), results)

    def _exit(self) -> str:
        code = self._popen.returncode
        if not code:
            return ""
        return _last_line(self._errors) or (
            f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        )


def _tell(missing: list[str], strict: bool) -> None:
    if missing and strict:
        raise IsolationError(
            f"the code verifier's sandbox cannot be had here ({'; '.join(missing)}); run where the kernel has it, or set "
            "reward.options.isolation=best_effort to run model output without it"
        )
    for wall in set(missing) - _told:
        log.warning("code verifier: MODEL OUTPUT IS RUN WITHOUT A WALL: %s (isolation is best_effort)", wall)
        _told.add(wall)


def _in_memory(content: bytes) -> int:
    """A descriptor that reads `content` from its beginning: no pipe that could be full, no file that could be left."""
    descriptor = os.memfd_create("kray-sandbox")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _environment(folder: str) -> dict[str, str]:
    """All that the program gets: no variable of this process."""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", **threads}


def _last_line(errors: bytearray) -> str:
    """Of a traceback: the line that says what happened, fit for a log."""
    lines = bytes(errors).decode(errors="replace").strip().splitlines()
    return "".join(c if c.isprintable() else "?" for c in lines[-1][:200]) if lines else ""
