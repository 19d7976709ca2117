"""A session host and the socket to it: the driver's side of host.py."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from kray.environments.frames import read_reply, request_frame
from kray.environments.host import CLOSE_TIMEOUT_S

# Seconds to wait until a killed process has exited.
_EXIT_WAIT_S = 5.0
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from kray.environments.host import main; main(int(sys.argv[1]))"
)


class HostError(Exception):
    """A host was lost with its sessions; the message is a failure's reason."""


class HostProcess:
    """A session host and the socket to it.

    Attributes:
        number: Of the host, never used again.
        slot: Its place among the hosts.
        popen: The process.
    """

    def __init__(self, number: int, slot: int, popen: subprocess.Popen, connection: socket.socket) -> None:
        self.number, self.slot, self.popen = number, slot, popen
        self._connection = connection
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = itertools.count(1)
        self._lost = ""

    @property
    def lost(self) -> bool:
        """Whether the host is known to have ended."""
        return bool(self._lost)

    @classmethod
    def spawn(cls, number: int, slot: int) -> HostProcess:
        """Start a process, in a process group of its own, so that what an environment started is killed with it."""
        parent_end, child_end = socket.socketpair()
        try:
            paths = json.dumps([path if path else os.getcwd() for path in sys.path])
            popen = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(child_end.fileno()), paths],
                pass_fds=[child_end.fileno()],
                stdin=subprocess.DEVNULL,
                # What environments print goes to the log.
                stdout=2,
                env={
                    "OMP_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                    # What is printed may hold any text.
                    "PYTHONIOENCODING": ":backslashreplace",
                    **os.environ,
                },
                start_new_session=True,
            )
        except BaseException:
            parent_end.close()
            raise
        finally:
            child_end.close()
        return cls(number, slot, popen, parent_end)

    async def start(self, setup: dict[str, Any], timeout_s: float) -> None:
        """Wait until the environment is ready.

        Args:
            setup: The first message, see host.py.
            timeout_s: Seconds for it.

        Raises:
            HostError: The environment cannot be started, the process died or took too long; it has been killed.
        """
        reader, self._writer = await asyncio.open_unix_connection(sock=self._connection)
        self._writer.write(request_frame(setup))
        try:
            reply = await asyncio.wait_for(read_reply(reader), timeout_s)
        except TimeoutError:
            self._lose(f"it was not ready after {timeout_s:g} s")
        except (EOFError, ConnectionError, ValueError):
            self._lose("it died while starting", told=True)
        else:
            if "error" in reply:
                self._lose(str(reply["error"]))
        if self._lost:
            raise HostError(self._lost)
        self._reading = asyncio.create_task(self._read(reader))

    async def request(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Return the reply to a request.

        Args:
            request: See host.py; its id is added.
            timeout_s: Seconds after which the host is taken for hung and killed.

        Raises:
            HostError: The host was lost.
        """
        if self._lost:
            raise HostError(self._lost)
        assert self._writer is not None
        number = next(self._ids)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(request_frame({**request, "id": number}))
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            self._lose(f"its host did not answer within {timeout_s:g} s and was killed with its sessions")
            raise HostError(self._lost) from None
        finally:
            self._waiting.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()

    def notify(self, request: dict[str, Any]) -> None:
        """Send a request whose reply is not needed."""
        if not self._lost and self._writer is not None and not self._writer.is_closing():
            self._writer.write(request_frame({**request, "id": next(self._ids)}))

    def hang_up(self) -> None:
        """Tell the host to close its sessions and exit. Can be called from any thread."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def stop(self) -> str:
        """End the process and all that it started; return how it ended. Can be called from any thread."""
        self._lost = self._lost or "its host was closed"
        self.hang_up()
        return self._killed(patience_s=CLOSE_TIMEOUT_S + 1.0)

    def kill(self) -> None:
        """End the process and all that it started at once."""
        self._lose("its host was killed")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Give replies to those who wait for them, until the host exits."""
        try:
            while True:
                reply = await read_reply(reader)
                future = self._waiting.get(reply.get("id", 0))
                if future is not None and not future.done():
                    future.set_result(reply)
        except (EOFError, ConnectionError, ValueError) as error:
            garbled = f": it wrote what is no reply: {error}" if isinstance(error, ValueError) else ""
            self._lose(f"its host died with its sessions{garbled}", told=True)

    def _lose(self, reason: str, told: bool = False) -> None:
        """Kill the host and fail what waits for it."""
        if not self._lost:
            # A host whose socket has ended is about to exit, with a code that says why.
            ended = self._killed(patience_s=0.5 if told else 0.0)
            self._lost = f"{reason} ({ended})" if told else reason
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(HostError(self._lost))
        if self._reading is not None and self._reading is not asyncio.current_task():
            self._reading.cancel()

    def _killed(self, patience_s: float) -> str:
        """Kill the process group, close the socket and return how the process ended, for messages.

        Args:
            patience_s: Seconds in which the process may exit by itself.
        """
        if self.popen.returncode is None:
            deadline = time.monotonic() + patience_s
            # The exit status is not collected yet: until then the id of the process group cannot be another's.
            while time.monotonic() < deadline and not self._exited():
                time.sleep(0.01)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout=_EXIT_WAIT_S)
        if self._writer is not None:
            # Raised when the event loop is closed.
            with contextlib.suppress(RuntimeError):
                self._writer.transport.abort()
        else:
            self._connection.close()
        code = self.popen.returncode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def _exited(self) -> bool:
        return os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
