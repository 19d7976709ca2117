"""Carries out a service's calls one after another in a thread, and refuses those that would wait too long. No HTTP, no Ray.

- Calls run in the order in which they were admitted, never two at a time: state that they share needs no lock, and equal
  orders of calls give equal results.
- The event loop stays free meanwhile, so that a refusal takes no longer when a call does.
- A call is refused before any work, when those before it are expected to take longer than it may wait. One that finds nothing
  before it is admitted, however long it takes.
- Who is refused is told to come back so late that about as many calls are refused as admitted, and not all at once: refusals
  would else take the time in which calls could be carried out.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from kray.serve.gate import Refusal

# What a call is expected to take before one of its kind has run, in seconds.
FIRST_GUESS_S = 0.05
# Weight of the newest call in what its kind is expected to take.
NEWEST_WEIGHT = 0.2
# Seconds after which the thread yields the interpreter to the event loop; Python's default of 0.005 adds up over the turns
# that one request needs.
SWITCH_INTERVAL_S = 0.0005
# Seconds after which a refused call may be sent again, at least and at most, and seconds between two changes of what is told.
LEAST_RETRY_S, MOST_RETRY_S, RETRY_CHANGE_S = 1.0, 10.0, 1.0
# Multiples of it are spread evenly between 0 and 1.
GOLDEN_RATIO = 0.6180339887498949


class Expected:
    """What the calls that were admitted and have not ended are expected to take. Pure: time comes in as an argument."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()
        self._typical_s: dict[str, float] = {}
        self._running: tuple[str, float] | None = None

    def typical_s(self, kind: str) -> float:
        """Return the seconds that a call of this kind takes: an average in which the newest count most."""
        return self._typical_s.get(kind, FIRST_GUESS_S)

    def wait_s(self, now: float) -> float:
        """Return the seconds that a call admitted now is expected to wait."""
        total = sum(count * self.typical_s(kind) for kind, count in self._waiting.items())
        if self._running is not None:
            kind, begun = self._running
            # One that takes longer than usual is expected to take as long again.
            elapsed = now - begun
            left = self.typical_s(kind) - elapsed
            total += left if left > 0 else elapsed
        return total

    def admitted(self, kind: str) -> None:
        """Note that a call waits."""
        self._waiting[kind] += 1

    def given_up(self, kind: str) -> None:
        """Note that a call that waited will not be carried out."""
        self._waiting[kind] -= 1

    def begun(self, kind: str, now: float) -> None:
        """Note that a call that waited is being carried out."""
        assert self._running is None
        self._waiting[kind] -= 1
        self._running = kind, now

    def ended(self, now: float) -> None:
        """Note that the call that was being carried out has ended."""
        assert self._running is not None
        kind, begun = self._running
        took, before = now - begun, self._typical_s.get(kind)
        self._typical_s[kind] = took if before is None else before + NEWEST_WEIGHT * (took - before)
        self._running = None


class RetryTimes:
    """When refused calls are to be sent again. Pure: time comes in as an argument."""

    def __init__(self) -> None:
        self._interval_s, self._changed = LEAST_RETRY_S, float("-inf")
        self._refused = self._admitted = self._numbers = 0

    def admitted(self) -> None:
        """Note that a call was admitted of those that are refused first."""
        self._admitted += 1

    def refused(self, now: float) -> float:
        """Note a refusal; return the seconds after which to try again, between one and two of the present intervals."""
        self._refused += 1
        if now - self._changed >= RETRY_CHANGE_S:
            # Callers come back once an interval: as many are refused as admitted when it is in proportion to both.
            change = min(2.0, max(0.5, self._refused / max(1, self._admitted)))
            self._interval_s = min(MOST_RETRY_S / 2, max(LEAST_RETRY_S, self._interval_s * change))
            self._changed, self._refused, self._admitted = now, 0, 0
        self._numbers += 1
        return self._interval_s * (1 + self._numbers * GOLDEN_RATIO % 1)


def yield_often() -> None:
    """Have threads of this process wait no longer than SWITCH_INTERVAL_S for one that computes."""
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_S))


class WorkQueue:
    """The queue and its thread."""

    def __init__(self, most_wait_s: Mapping[str, float], clock: Callable[[], float] = time.monotonic):
        """Create a queue without calls.

        Args:
            most_wait_s: Kind of call -> seconds that one may be expected to wait.
            clock: Returns seconds.
        """
        self._most_wait_s, self._clock = dict(most_wait_s), clock
        # Of calls that begin something, which are refused first.
        self._least_wait_s = min(self._most_wait_s.values())
        self._expected, self._retries, self._lock = Expected(), RetryTimes(), threading.Lock()
        self._thread = ThreadPoolExecutor(1, "kray-work")

    def check(self, kind: str) -> None:
        """Raise Refusal where a call of this kind would wait too long now."""
        with self._lock:
            self._check(kind)

    async def run(self, kind: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Carry out a call after those that were admitted before it.

        Returns:
            Its result.

        Raises:
            Refusal: It would wait too long.
            Exception: What the call raised.
        """
        with self._lock:
            self._check(kind)
            self._expected.admitted(kind)
            if self._most_wait_s[kind] == self._least_wait_s:
                self._retries.admitted()
            work = self._thread.submit(self._carry_out, kind, call, arguments)
        work.add_done_callback(lambda done: self._note_cancelled(kind, done))
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Drop what waits; what is being carried out goes on to its end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _check(self, kind: str) -> None:
        now = self._clock()
        wait_s, most_s = self._expected.wait_s(now), self._most_wait_s[kind]
        if wait_s > most_s:
            text = f"the requests before this one take about {wait_s:.1f} s; try again after the seconds of Retry-After"
            raise Refusal(429, text, "queue", retry_after_s=math.ceil(max(wait_s, self._retries.refused(now))))

    def _carry_out(self, kind: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        with self._lock:
            self._expected.begun(kind, self._clock())
        try:
            return call(*arguments)
        finally:
            with self._lock:
                self._expected.ended(self._clock())

    def _note_cancelled(self, kind: str, done: Future) -> None:
        # A client went before its turn.
        if done.cancelled():
            with self._lock:
                self._expected.given_up(kind)
