"""The scorer: judges answers in processes of its own, so that no answer can stop a run.

Every answer passed to `score` gets exactly one outcome, in the given order:
- a reward;
- reward 0 with timed_out, when judging exceeded the deadline: the process was killed and replaced;
- reward None with an error, when the verifier raised, or the process died twice at this answer: a data failure.
Every wait has a deadline. Answers are sent in chunks of some milliseconds of work, results return one by one, and each
result starts the next answer's deadline. For one event loop at a time, on which any number of calls of `score` may wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kray.rewards.outcome import TIMED_OUT, Outcome, Ranges
from kray.rewards.scoring_process import ScoringProcess

# The error of an answer to which the function does not apply.
NO_REWARD = "the reward function returned None: it does not apply to this prompt"
# Seconds of work in one message: little overhead, and little that waits behind a slow answer.
_CHUNK_S = 0.02
_CHUNK_ITEMS = 256
_CHUNK_CHARACTERS = 1_000_000
# Seconds per answer that are assumed before the first results.
_INITIAL_ITEM_S = 0.005
_START_ATTEMPTS = 3
# Exits of processes at one answer after which it is a data failure.
_MAX_DEATHS = 2


class _Batch:
    """The answers of one call of `score`."""

    def __init__(self, size: int, done: asyncio.Future) -> None:
        self.outcomes: list[Outcome | None] = [None] * size
        self.left = size
        self.done = done

    @property
    def dropped(self) -> bool:
        """Whether the call has ended, so that outcomes are no longer needed."""
        return self.done.done()

    def put(self, index: int, outcome: Outcome) -> None:
        """Record the outcome of one answer."""
        if self.dropped:
            return
        assert self.outcomes[index] is None, "an answer got two outcomes"
        self.outcomes[index] = outcome
        self.left -= 1
        if self.left == 0:
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        """End the call with an error."""
        if not self.dropped:
            self.done.set_exception(error)


@dataclass(slots=True)
class _Job:
    batch: _Batch
    index: int
    item: tuple[str, Any, Any]
    deaths: int = 0


class Scorer:
    """A pool of scoring processes.

    Attributes:
        timeouts: Answers that exceeded the deadline.
        failures: Data failures.
        restarts: Processes that were replaced.
    """

    def __init__(
        self,
        verifier_default: str,
        options: dict[str, Any] | None = None,
        workers: int = 1,
        timeout_s: float = 10.0,
        start_timeout_s: float = 60.0,
        memory_gib: float = 4.0,
        named: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
        ranges: Ranges | None = None,
    ) -> None:
        """Create the scorer; processes start when first needed.

        Args:
            verifier_default: Verifier of items that name none; loaded when a process starts.
            options: Keyword arguments of the default verifier; other verifiers get none.
            workers: Number of processes.
            timeout_s: Seconds for one answer.
            start_timeout_s: Seconds for a process to start, and for a verifier to be imported.
            memory_gib: Data of one process, beyond which the verifier gets a MemoryError; 0: no limit.
            named: Name -> (verifier, its keyword arguments) of further names that items may have as their verifier.
            ranges: Which values are rewards; None: rewards are the values as verifiers give them.

        Raises:
            ValueError: An argument is out of range.
        """
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        if not (memory_gib >= 0 and math.isfinite(memory_gib)):
            raise ValueError(f"memory_gib must be at least 0 and finite, not {memory_gib}")
        if not (timeout_s > 0 and math.isfinite(timeout_s)):
            raise ValueError(f"timeout_s must be positive and finite, not {timeout_s}")
        self.verifier_default = verifier_default
        self.options = dict(options or {})
        self.named = {name: (verifier, dict(given)) for name, (verifier, given) in (named or {}).items()}
        self.ranges = ranges
        self.workers = workers
        self.timeout_s = timeout_s
        self.start_timeout_s = start_timeout_s
        self.memory_gib = memory_gib
        self.timeouts = self.failures = self.restarts = 0
        # Running mean of seconds per answer, from which the number of answers in one message follows.
        self._item_s = _INITIAL_ITEM_S
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task] = []
        self._batches: set[_Batch] = set()
        self._processes: set[ScoringProcess] = set()
        self._closed = False

    async def score(self, items: Iterable[tuple[str, Any, Any]]) -> list[Outcome]:
        """Score answers.

        Args:
            items: (verifier or "", response, answer or Sample) each.

        Returns:
            Their outcomes, in the same order.

        Raises:
            KrayError: No process can be started, or the scorer is closed.
        """
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
        outcomes: list[Outcome] = batch.outcomes  # type: ignore[assignment]
        if self.ranges is None:
            return outcomes
        ranged = self.ranges.apply_all([verifier for verifier, _, _ in items], outcomes, self.named)
        self.failures += _failed(ranged) - _failed(outcomes)
        return ranged

    async def score_one(self, verifier: str, response: str, answer: str) -> Outcome:
        """Score one answer; see `score`."""
        return (await self.score([(verifier, response, answer)]))[0]

    def close(self) -> None:
        """Kill all processes; pending calls of `score` raise KrayError. Can be called twice, and from any thread."""
        self._closed = True
        for process in list(self._processes):
            process.stop()
        # Raised when the event loop is closed, and its tasks with it.
        with contextlib.suppress(RuntimeError):
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
        """Start one task per process on the running loop; a new loop (a second asyncio.run) gets new tasks."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._loop, self._queue, self._wake = loop, deque(), asyncio.Event()
        self._tasks = [loop.create_task(self._serve()) for _ in range(self.workers)]

    async def _serve(self) -> None:
        """Score chunks from the queue in one process at a time; requeue what a killed process had not begun."""
        process: ScoringProcess | None = None
        jobs: list[_Job] = []
        try:
            while True:
                jobs = await self._take()
                try:
                    # It exited while idle: no answer is the cause.
                    if process is not None and process.popen.poll() is not None:
                        self._end(process)
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
        """Return the next chunk: some milliseconds of work, at most this process's share of the queue."""
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

    async def _start(self) -> ScoringProcess:
        """Start a process and wait until it is ready; raise KrayError after _START_ATTEMPTS attempts."""
        for _ in range(_START_ATTEMPTS):
            process = ScoringProcess.spawn()
            self._processes.add(process)
            try:
                await process.connect()
                table = {self.verifier_default: (self.verifier_default, self.options)} | self.named
                first = (self.verifier_default, table, self.timeout_s, self.memory_gib)
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

    def _end(self, process: ScoringProcess) -> None:
        process.kill()
        self._processes.discard(process)
        self.restarts += not self._closed

    async def _run(self, process: ScoringProcess, jobs: list[_Job]) -> list[_Job] | None:
        """Score jobs in order; return None when all are done, else those left, and the process must be replaced."""
        wait_s, loading, position = self.timeout_s, False, 0
        try:
            await process.send([job.item for job in jobs], self.start_timeout_s)
            while position < len(jobs):
                for message in await process.receive(wait_s):
                    # More replies than requests: a verifier wrote to the socket.
                    if position == len(jobs):
                        return []
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
        # It finished late, while this event loop was too busy to kill it.
        if elapsed_s > self.timeout_s:
            self._time_out(job)
        elif message[0] == "given":
            job.batch.put(job.index, Outcome(0.0, elapsed_s=elapsed_s, given=message[1]))
        elif message[0] == "skipped":
            job.batch.put(job.index, Outcome(None, error=NO_REWARD, elapsed_s=elapsed_s, skipped=True))
        elif message[0] == "ranged":
            ends = (message[3], message[4])
            job.batch.put(job.index, Outcome(message[1], message[2], elapsed_s=elapsed_s, ends=ends))
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


def _failed(outcomes: Iterable[Outcome]) -> int:
    return sum(outcome.reward is None for outcome in outcomes)


def _error(what: str) -> Exception:
    from kray.errors import KrayError

    return KrayError(f"scorer: {what}")
