"""A server that an environment starts on this machine, and that ends with the process that started it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence

from kray.ports import free_port

# Last lines of the server's output in messages, and how many bytes are read for them.
_TAIL_LINES, _TAIL_BYTES = 4, 4000
_POLL_S = 0.1
# Seconds to end by itself.
_TERMINATE_S = 1.0
# The kernel ends the server when its parent dies, also by SIGKILL.
_BOUND = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
)


class ServerError(Exception):
    """The server cannot be started, or has exited; the message ends with the last lines of its output."""


class LocalServer:
    """A server on 127.0.0.1.

    Attributes:
        url: Its address; "" before the first start.
    """

    def __init__(self, command: Sequence[str], folder: str, timeout_s: float, own_python: bool = False):
        """Start nothing.

        Args:
            command: Program and arguments; {port} stands for the port to listen on. A path of the program is relative to
                the folder of this process.
            folder: Working folder; "" for that of this process.
            timeout_s: Seconds until it must answer.
            own_python: Whether the program is a Python with packages of its own, in which those of this process's
                PYTHONPATH have no place.
        """
        self.own_python = own_python
        program, *arguments = command
        # The server starts in its own folder. Links are kept: they tell a Python which environment it belongs to.
        self.command = [os.path.abspath(program) if os.sep in program else program, *arguments]
        self.folder, self.timeout_s = folder, timeout_s
        self.url = ""
        self._process: asyncio.subprocess.Process | None = None
        self._killed = False
        self._starting: asyncio.Task[None] | None = None
        # A file without a name: nothing is left behind, however this process ends.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115

    @property
    def running(self) -> bool:
        """Whether the server has been started and neither exited nor been killed."""
        return self._process is not None and self._process.returncode is None and not self._killed

    async def ensure(self, answers: Callable[[str], Awaitable[bool]]) -> None:
        """Start the server unless it runs, and wait until it answers.

        Whoever waits may be cancelled: the start goes on for the others.

        Args:
            answers: Tells of an address whether the server there is ready.

        Raises:
            ServerError: It cannot be started, or does not answer in time.
        """
        if self._starting is None or (self._starting.done() and not self.running):
            self._starting = asyncio.create_task(self._start(answers))
            # Its error is for those who wait, of whom there may be none left.
            self._starting.add_done_callback(lambda task: None if task.cancelled() else task.exception())
        await asyncio.shield(self._starting)

    async def _start(self, answers: Callable[[str], Awaitable[bool]]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [part.replace("{port}", str(port)) for part in self.command]
        self._output.seek(0, os.SEEK_END)
        self._killed = False
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _BOUND, str(os.getpid()), *command),
                env={key: value for key, value in os.environ.items() if not (self.own_python and key == "PYTHONPATH")},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                cwd=self.folder or None,
            )
            async with asyncio.timeout(self.timeout_s):
                while not await answers(self.url):
                    if not self.running:
                        raise ServerError(self.ended())
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            self.kill()
            raise ServerError(f"the server was not ready after {self.timeout_s:g} s{self._tail()}") from None
        except OSError as error:
            raise ServerError(f"{' '.join(command)}: {error}") from None

    def ended(self) -> str:
        """Return how the server ended, with the last lines of its output; "" while it runs."""
        if self._process is None or (code := self._process.returncode) is None:
            return ""
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"the server ended ({how}){self._tail()}"

    def kill(self) -> None:
        """Kill the server; the next `ensure` starts another."""
        if self.running:
            assert self._process is not None
            self._process.kill()
            self._killed = True

    async def close(self) -> None:
        """End the server."""
        if self._starting is not None:
            self._starting.cancel()
        if self._process is None or not self.running:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _TERMINATE_S)
        self.kill()

    def _tail(self) -> str:
        end = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, end - _TAIL_BYTES))
        lines = self._output.read().decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
        return "; its last output: " + " | ".join(line.strip() for line in lines) if lines else ""
