"""Run one untrusted Python program in a restricted process. Linux only.

Guarantees: `run` returns about a second after its deadline at the latest; by then no process that it started is left, nor
any file that the program wrote; the program gets none of this process's environment, files or descriptors; its output is
read up to a bound. The restrictions are applied in the started process (kray/rewards/confined); this side supervises it.
The process is killed when the thread that called `run` ends, so that killing a scoring process is enough.
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
# Bytes at the end of standard error that are kept for error messages.
_STDERR_BYTES = 4096
# Largest limit in its unit: a tebibyte of memory.
_MOST = 1 << 20
# Seconds to wait until a killed process has exited.
_EXIT_WAIT_S = 5.0

logger = logging.getLogger(__name__)
# Missing restrictions that this process has logged a warning about.
_warned: set[str] = set()


class IsolationError(RuntimeError):
    """A restriction that the sandbox needs is not available here."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one sandboxed process.

    Attributes:
        memory_mib: Address space.
        output_kib: Bound of its standard output, and of its results.
        file_mib: Bound of all that it writes to its folder.
    """

    memory_mib: int = 512
    output_kib: int = 1024
    file_mib: int = 16

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or not 1 <= value <= _MOST:
                raise ValueError(f"code: {name} must be a whole number from 1 to {_MOST:,}, not {value!r:.60}")


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a program ended.

    Attributes:
        failure: "" when it exited by itself with code 0, else the reason, in one line.
        output: What it wrote to standard output.
        results: One per expression that was reached: {"value": ...} (encoded by confined/plain.py) or {"error": ...}.
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
) -> RunResult:
    """Run a Python program until it exits, breaks a limit, or the deadline passes.

    Args:
        program: Source of the program.
        deadline: Monotonic time in seconds.
        limits: Limits of the process.
        stdin: Standard input of a script.
        expressions: None to run the program as a script; else expressions to evaluate in order after the program and
            `setup` have run.
        setup: Source that runs after the program.
        isolation: "strict" refuses to run anything where a restriction is missing; "best_effort" logs one warning.
        packages: Whether the program may import installed packages besides the standard library.

    Raises:
        ValueError: `isolation` is not one of ISOLATION.
        IsolationError: `isolation` is "strict" and a restriction is missing, or the sandbox did not start.
    """
    if isolation not in ISOLATION:
        raise ValueError(f"code: isolation must be one of {', '.join(ISOLATION)}, not {isolation!r}")
    if sys.platform != "linux":
        raise IsolationError(f"the code verifier's sandbox needs Linux, not {sys.platform}")
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        return RunResult("timeout", b"", [])
    with tempfile.TemporaryDirectory(prefix="kray-sandbox-", ignore_cleanup_errors=True) as folder:
        request = {
            "program": program,
            "expressions": None if expressions is None else list(expressions),
            "setup": setup,
            "strict": isolation == "strict",
            "limits": {"cpu_s": math.ceil(left_s) + 1, **asdict(limits)},
            "folder": folder,
            "packages": site.getsitepackages() if packages else [],
        }
        process = _SandboxProcess(request, stdin, limits)
        try:
            process.read_until(deadline)
        finally:
            process.kill()
        return process.result(isolation == "strict")


class _SandboxProcess:
    """The sandboxed process, its three pipes and what was read from them."""

    def __init__(self, request: dict[str, Any], stdin: bytes, limits: Limits) -> None:
        self._limits = limits
        self._failure = ""
        self._output, self._errors, self._results = bytearray(), bytearray(), bytearray()
        results, results_end = os.pipe()
        # Closed by `kill`.
        reading = open(results, "rb", 0)  # noqa: SIM115
        descriptors = [results_end]
        try:
            descriptors += [_in_memory(json.dumps(request).encode()), _in_memory(stdin)]
            arguments = map(str, (_CONFINED, descriptors[1], results_end, os.getpid()))
            self._popen = subprocess.Popen(
                [sys.executable, "-S", "-s", *arguments],
                stdin=descriptors[2],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=descriptors[:2],
                env=_environment(request["folder"]),
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            reading.close()
            raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._pipes = {self._popen.stdout: self._output, self._popen.stderr: self._errors, reading: self._results}

    def read_until(self, deadline: float) -> None:
        """Read until all pipes are closed and the process has exited, a bound is exceeded or the deadline passes."""
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

    def kill(self) -> None:
        """Kill the process with its process group and wait until it has exited."""
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            try:
                self._popen.wait(_EXIT_WAIT_S)
            except subprocess.TimeoutExpired:
                message = "code verifier: process %d has not exited %g s after SIGKILL"
                logger.error(message, self._popen.pid, _EXIT_WAIT_S)
        for pipe in self._pipes:
            pipe.close()  # type: ignore[union-attr]

    def result(self, strict: bool) -> RunResult:
        """Return how the program ended.

        Raises:
            IsolationError: A restriction is missing and `strict` is set, or the sandbox did not start.
        """
        results = []
        for line in bytes(self._results).split(b"\n")[:-1]:
            try:
                result = json.loads(line)
            except (ValueError, RecursionError):
                result = None
            results.append(result if isinstance(result, dict) else {"error": "a result that cannot be read"})
        # The first line was written before the program ran.
        if results:
            _report_missing(list(results.pop(0).get("missing", [])), strict)
        elif not self._failure:
            raise IsolationError(f"the sandbox did not start: {_last_line(self._errors) or self._popen.returncode}")
        return RunResult(self._failure or self._exit_reason(), bytes(self._output), results)

    def _exit_reason(self) -> str:
        code = self._popen.returncode
        if not code:
            return ""
        reason = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return _last_line(self._errors) or reason


def _report_missing(missing: list[str], strict: bool) -> None:
    if missing and strict:
        raise IsolationError(
            f"the code verifier's sandbox is not available here ({'; '.join(missing)}); run where the kernel supports it, or "
            "set reward.options.isolation=best_effort to run model output without it"
        )
    for restriction in set(missing) - _warned:
        message = "code verifier: MODEL OUTPUT RUNS WITHOUT A RESTRICTION: %s (isolation is best_effort)"
        logger.warning(message, restriction)
        _warned.add(restriction)


def _in_memory(content: bytes) -> int:
    """Return a descriptor that reads `content` from its beginning: it cannot block like a pipe, and leaves no file."""
    descriptor = os.memfd_create("kray-sandbox")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _environment(folder: str) -> dict[str, str]:
    """Return the program's whole environment, which has no variable of this process."""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", **threads}


def _last_line(errors: bytearray) -> str:
    """Return the last line of a traceback, which names the error, in printable characters."""
    lines = bytes(errors).decode(errors="replace").strip().splitlines()
    return "".join(c if c.isprintable() else "?" for c in lines[-1][:200]) if lines else ""
