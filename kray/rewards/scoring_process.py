"""A scoring process and the socket to it: the scorer's side of worker.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

from kray.rewards.worker import encode_request, take_replies

# Seconds after a deadline in which results count that came while the event loop was busy.
_GRACE_S = 0.05
# Seconds to wait until a killed process has exited.
_EXIT_WAIT_S = 5.0
_READ_BYTES = 1 << 16
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from kray.rewards.worker import main; main(int(sys.argv[1]))"
)


class ScoringProcess:
    """A scoring process and the socket to it.

    Attributes:
        popen: The process.
    """

    def __init__(self, popen: subprocess.Popen, connection: socket.socket) -> None:
        self.popen = popen
        self._connection = connection
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self._buffer = bytearray()

    @classmethod
    def spawn(cls) -> ScoringProcess:
        """Start a process.

        Neither by fork, as the parent has threads, nor by multiprocessing, which would import the parent's main module.
        """
        parent_end, child_end = socket.socketpair()
        try:
            paths = json.dumps([path if path else os.getcwd() for path in sys.path])
            popen = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(child_end.fileno()), paths],
                pass_fds=[child_end.fileno()],
                stdin=subprocess.DEVNULL,
                # What verifiers print goes to the log.
                stdout=2,
                env={
                    "OMP_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                    # What is printed may hold any text.
                    "PYTHONIOENCODING": ":backslashreplace",
                    **os.environ,
                },
                # A process group of its own, so that what a verifier started is killed with it.
                start_new_session=True,
            )
        except BaseException:
            parent_end.close()
            raise
        finally:
            child_end.close()
        return cls(popen, parent_end)

    async def connect(self) -> None:
        """Open the socket on the running event loop."""
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._connection)

    async def send(self, message: Any, timeout_s: float) -> None:
        """Send a request.

        Args:
            message: See worker.py.
            timeout_s: Seconds until the socket must have taken it.

        Raises:
            ConnectionError: The process has exited.
            TimeoutError: The socket did not take the message in time.
        """
        assert self._writer is not None
        self._writer.write(encode_request(message))
        await asyncio.wait_for(self._writer.drain(), timeout_s)

    async def receive(self, timeout_s: float) -> list[list[Any]]:
        """Return the replies that have arrived, at least one.

        Args:
            timeout_s: Seconds to wait for more bytes.

        Raises:
            EOFError: The process has exited.
            ConnectionError: What arrived is not a reply.
            TimeoutError: Nothing arrived in time.
        """
        while not (replies := take_replies(self._buffer)):
            try:
                data = await asyncio.wait_for(self._reader.read(_READ_BYTES), timeout_s)
            except TimeoutError:
                data = await asyncio.wait_for(self._reader.read(_READ_BYTES), _GRACE_S)
            if not data:
                raise EOFError
            self._buffer += data
        return replies

    def stop(self) -> None:
        """Kill the process and all that it started. Can be called from any thread."""
        # After the exit its id may belong to another process.
        if self.popen.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout=_EXIT_WAIT_S)

    def kill(self) -> str:
        """Kill the process, close the socket and return how the process ended, for messages."""
        self.stop()
        if self._writer is not None:
            # Raised when the event loop is closed.
            with contextlib.suppress(RuntimeError):
                self._writer.transport.abort()
        else:
            self._connection.close()
        code = self.popen.returncode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
