"""The scorer: judges answers in processes of its own, so that no answer can stop a run.

Every answer that `score` takes gets exactly one outcome, in the order given:
- a reward;
- reward 0 with timed_out, when judging took longer than the deadline: the process was killed and replaced;
- reward None with an error, when the verifier raised, or the process died twice at this answer: a data failure.
Every wait has a deadline. Answers travel in chunks of some milliseconds of work, results come back one by one, and each
result starts the next answer's deadline. Single-loop: `score` may be awaited many times at once on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kray.rewards.worker import order, taken

TIMED_OUT = "timeout after"  # how the detail of an answer begins that took too long to judge
_CHUNK_S = 0.02  # work that one message should hold: little overhead, and little that waits behind a slow answer
_CHUNK_ITEMS = 256
_CHUNK_CHARACTERS = 1_000_000
_START_ATTEMPTS = 3
_GRACE_S = 0.05  # after a deadline, for results that came while this event loop was busy
_MAX_DEATHS = 2  # of processes at one answer; then it is a data failure
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from kray.rewards.worker import main; main(int(sys.argv[1]))"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one answer. reward is None exactly when error says why; elapsed_s: seconds in the verifier.

    given: by a function that is no verifier (see worker.py), with reward 0.
    """

    reward: float | None
    detail: str = ""
    error: str = ""
    timed_out: bool = False
    elapsed_s: float = 0.0
    given: Any = None


class _Batch:
    """The answers of one call of `score`. dropped: nobody waits for it any more."""

    def __init__(self, size: int, done: asyncio.Future) -> None:
        self.outcomes: list[Outcome | None] = [None] * size
        self.left = size
        self.done = done

    @property
    def dropped(self) -> bool:
        return self.done.done()

    def put(self, index: int, outcome: Outcome) -> None:
        if self.dropped:
            return
        assert self.outcomes[index] is None, "an answer got two outcomes"
        self.outcomes[index] = outcome
        self.left -= 1
        if self.left == 0:
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self.dropped:
            self.done.set_exception(error)


@dataclass(slots=True)
class _Job:
    batch: _Batch
    index: int
    item: tuple[str, Any, Any]
    deaths: int = 0


class _Process:
    """A scoring process and the socket to it."""

    def __init__(self, popen: subprocess.Popen, connection: socket.socket) -> None:
        self.popen = popen
        self._connection = connection
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self._buffer = bytearray()

    @classmethod
    def spawn(cls) -> _Process:
        """Not by fork: the parent has threads. Not by multiprocessing: that would import the parent's main module."""
        here, there = socket.socketpair()
        try:
            command = [sys.executable, "-c", _PROGRAM, str(there.fileno()), _paths()]
            environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ}
            popen = subprocess.Popen(
                command,
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what verifiers print goes to the log
                env=environment,
                start_new_session=True,  # so that what a verifier started dies with it
            )
        except BaseException:
            here.close()
            raise
        finally:
            there.close()
        return cls(popen, here)

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._connection)

    async def send(self, message: Any, timeout_s: float) -> None:
        """Raises ConnectionError when the process is gone, TimeoutError."""
        assert self._writer is not None
        self._writer.write(order(message))
        await asyncio.wait_for(self._writer.drain(), timeout_s)

    async def receive(self, timeout_s: float) -> list[list[Any]]:
        """The messages that have come, at least one.

        Raises EOFError when the process is gone, ConnectionError for what is no message, TimeoutError.
        """
        while not (messages := taken(self._buffer)):
            try:
                data = await asyncio.wait_for(self._reader.read(1 << 16), timeout_s)
            except TimeoutError:
                data = await asyncio.wait_for(self._reader.read(1 << 16), _GRACE_S)
            if not data:
                raise EOFError
            self._buffer += data
        return messages

    def stop(self) -> None:
        """End the process and all that it started. From any thread."""
        if self.popen.returncode is not None:
            return  # the number may be another process's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout=5.0)

    def kill(self) -> str:
        """Stop it and close the socket; returns how it ended, for people."""
        self.stop()
        if self._writer is not None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                self._writer.transport.abort()
        else:
            self._connection.close()
        code = self.popen.returncode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _paths() -> str:
    return json.dumps([path if path else os.getcwd() for path in sys.path])


class Scorer:
    """A pool of scoring processes.

    verifier_default: of items that name none; loaded when a process starts, and `options` are its keyword arguments
    (other verifiers get none). workers: processes, started when first needed. timeout_s: for one answer;
    start_timeout_s: for a process to start and for a verifier to be imported. memory_gib: of one process, over which
    the verifier gets a MemoryError; 0: no limit.
    Counters: timeouts, failures (data failures), restarts (processes replaced).
    """

    def __init__(
        self,
        verifier_default: str,
        options: dict[str, Any] | None = None,
        workers: int = 1,
        timeout_s: float = 10.0,
        start_timeout_s: float = 60.0,
        memory_gib: float = 4.0,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        if not (memory_gib >= 0 and math.isfinite(memory_gib)):
            raise ValueError(f"memory_gib must be at least 0 and finite, not {memory_gib}")
        if not (timeout_s > 0 and math.isfinite(timeout_s)):
            raise ValueError(f"timeout_s must be positive and finite, not {timeout_s}")
        self.verifier_default = verifier_default
        self.options = dict(options or {})
        self.workers = workers
        self.timeout_s = timeout_s
        self.start_timeout_s = start_timeout_s
        self.memory_gib = memory_gib
        self.timeouts = self.failures = self.restarts = 0
        self._item_s = 0.005  # seconds per answer, a running mean; sets how many travel in one message
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task] = []
        self._batches: set[_Batch] = set()
        self._processes: set[_Process] = set()
        self._closed = False

    async def score(self, items: Iterable[tuple[str, Any, Any]]) -> list[Outcome]:
        """Outcomes of (verifier or "", response, answer), in their order. Raises KrayError when no process starts."""
        items = list(items)
        if self._closed:
            raise _error("is closed")
        if not items:
            return []
        self._open()
        batch = _Batch(len(items), asyncio.get_running_loop().create_future())
        self._batches.add(batch)
        for index, (verifier, response, answer) in enumerate(items):
            self._queue.append(_Job(batch, index, (verifier or self.verifier_default, response, answer)))
        self._wake.set()
        try:
            await batch.done
        finally:
            self._batches.discard(batch)
        return batch.outcomes  # type: ignore[return-value]

    async def score_one(self, verifier: str, response: str, answer: str) -> Outcome:
        """The outcome of one answer."""
        return (await self.score([(verifier, response, answer)]))[0]

    def close(self) -> None:
        """Kill every process; calls of `score` that still wait raise KrayError. May be called twice, from any thread."""
        self._closed = True
        for process in list(self._processes):
            process.stop()
        with contextlib.suppress(RuntimeError):  # the event loop is closed, and its tasks with it
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._abandon)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _abandon(self) -> None:
        for task in self._tasks:
            task.cancel()
        for batch in list(self._batches):
            batch.fail(_error("was closed"))

    def _open(self) -> None:
        """Start one task per process on the running loop; a new loop (a second asyncio.run) starts afresh."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._loop, self._queue, self._wake = loop, deque(), asyncio.Event()
        self._tasks = [loop.create_task(self._serve()) for _ in range(self.workers)]

    async def _serve(self) -> None:
        """One process's life, and its successors': take answers, have them judged, put back what was not begun."""
        process: _Process | None = None
        jobs: list[_Job] = []
        try:
            while True:
                jobs = await self._take()
                try:
                    if process is not None and process.popen.poll() is not None:
                        self._end(process)  # it died idle: no answer is to blame
                        process = None
                    process = process or await self._start()
                    left = await self._run(process, jobs)
                except Exception as error:
                    for job in jobs:
                        job.batch.fail(error)
                    if process is not None:
                        self._end(process)
                        process = None
                    continue
                if left is not None:
                    self._end(process)
                    process = None
                    self._queue.extendleft(reversed(left))
                    self._wake.set()
        finally:
            if process is not None:
                self._end(process)

    async def _take(self) -> list[_Job]:
        """The next chunk: some milliseconds of work, and no more than this process's share of what waits."""
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            share = math.ceil(len(self._queue) / self.workers)
            most = max(1, min(_CHUNK_ITEMS, share, int(_CHUNK_S / self._item_s)))
            jobs: list[_Job] = []
            characters = 0
            while self._queue and len(jobs) < most and characters < _CHUNK_CHARACTERS:
                job = self._queue.popleft()
                if not job.batch.dropped:
                    jobs.append(job)
                    characters += len(job.item[1])
            if jobs:
                return jobs

    async def _start(self) -> _Process:
        """A process that has said it is ready. Raises KrayError after some attempts."""
        for _ in range(_START_ATTEMPTS):
            process = _Process.spawn()
            self._processes.add(process)
            try:
                await process.connect()
                first = (self.verifier_default, self.options, self.timeout_s, self.memory_gib)
                await process.send(first, self.start_timeout_s)
                await process.receive(self.start_timeout_s)
                return process
            except TimeoutError:
                reason = f"not ready after {self.start_timeout_s:g} s"
            except (EOFError, ConnectionError):
                reason = "died while starting"
            except BaseException:
                self._end(process)
                raise
            ended = process.kill()
            self._end(process)
            if self._closed:
                raise _error("was closed")
        raise _error(f"no process could be started in {_START_ATTEMPTS} attempts: {reason} ({ended})")

    def _end(self, process: _Process) -> None:
        process.kill()
        self._processes.discard(process)
        self.restarts += not self._closed

    async def _run(self, process: _Process, jobs: list[_Job]) -> list[_Job] | None:
        """Have jobs judged in order. None when all are; else those still to do, and the process must be replaced."""
        wait_s, loading, position = self.timeout_s, False, 0
        try:
            await process.send([job.item for job in jobs], self.start_timeout_s)
            while position < len(jobs):
                for message in await process.receive(wait_s):
                    if position == len(jobs):
                        return []  # it says more than it was asked
                    if message[0] in ("loading", "loaded"):
                        loading = message[0] == "loading"
                    else:
                        self._settle(jobs[position], message)
                        position += 1
                    wait_s = self.start_timeout_s if loading else self.timeout_s
            return None
        except TimeoutError:
            job = jobs[position]
            if loading:
                self._fail(job, f'verifier "{job.item[0]}" was not imported within {wait_s:g} s')
            else:
                self._time_out(job)
            return jobs[position + 1 :]
        except (EOFError, ConnectionError):
            job = jobs[position]
            job.deaths += 1
            if job.deaths < _MAX_DEATHS:
                return jobs[position:]
            self._fail(job, f"the scoring process died twice at this answer ({process.kill()})")
            return jobs[position + 1 :]

    def _settle(self, job: _Job, message: list[Any]) -> None:
        elapsed_s = message[-1]
        self._item_s += 0.05 * (elapsed_s + 2e-5 - self._item_s)
        if elapsed_s > self.timeout_s:  # it ended while this event loop was too busy to kill it
            self._time_out(job)
        elif message[0] == "given":
            job.batch.put(job.index, Outcome(0.0, elapsed_s=elapsed_s, given=message[1]))
        elif message[0] == "scored":
            job.batch.put(job.index, Outcome(message[1], message[2], elapsed_s=elapsed_s))
        else:
            self._fail(job, message[1], elapsed_s)

    def _time_out(self, job: _Job) -> None:
        self.timeouts += 1
        detail = f"{TIMED_OUT} {self.timeout_s:g} s"
        job.batch.put(job.index, Outcome(0.0, detail, timed_out=True, elapsed_s=self.timeout_s))

    def _fail(self, job: _Job, error: str, elapsed_s: float = 0.0) -> None:
        self.failures += 1
        job.batch.put(job.index, Outcome(None, error=error, elapsed_s=elapsed_s))


def _error(what: str) -> Exception:
    from kray.errors import KrayError

    return KrayError(f"scorer: {what}")
