"""Delivers metrics and other items to MLflow from one thread.

The thread can neither block nor stop a run: metrics wait in the journal on disk, other items in a bounded queue, and both are
delivered in order, metrics first. While the store does not answer, the waits between attempts double; what fails three times
although the store answers is dropped and reported. Metrics whose delivery gets no answer in time, as from a busy server, are
sent again in smaller portions for as long as that takes. What the store refuses for good (refusals.py) is reported once and
not tried again, and does not hold back what is delivered with it.
Every item that is put ends exactly once, delivered or lost; until then it waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from kray.config.redaction import redact
from kray.errors import KrayError
from kray.tracking.journal import Journal
from kray.tracking.refusals import deliver_rows, refusal, unanswered

logger = logging.getLogger(__name__)
# Values of metrics that are sent together, at most, and where larger portions get no answer in time.
BATCH_VALUES, LEAST_BATCH_VALUES = 1000, 60
# Attempts at an item while the store answers.
MAX_ATTEMPTS = 3
# Rows of system metrics that are kept while the store does not answer, and those that are sent together.
MAX_SAMPLES = 2000
BATCH_SAMPLES = 50


class Destination(Protocol):
    """What the writer needs of an MLflow run."""

    def answers(self) -> bool:
        """Return whether the store answers at all."""

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        """Record rows of {step, time, metric: value, ...}."""

    def end(self, status: str) -> None:
        """End the run."""


@dataclass
class Breaker:
    """Decides when to try again: waits double from first_s to longest_s.

    Pure: `now`, in monotonic seconds, is passed to every call.
    """

    first_s: float = 1.0
    longest_s: float = 30.0
    wait_s: float = 0.0
    until: float = 0.0

    def failed(self, now: float) -> None:
        """Record a failed attempt."""
        self.wait_s = min(max(2 * self.wait_s, self.first_s), self.longest_s)
        self.until = now + self.wait_s

    def worked(self) -> None:
        """Record that the store has answered."""
        self.wait_s = self.until = 0.0

    def ready(self, now: float) -> bool:
        """Return whether the next attempt is due."""
        return now >= self.until


@dataclass
class Item:
    """Something to deliver: its name in a report, and the call that delivers it."""

    label: str
    send: Callable[[], None]
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """How an attempt to deliver something ended.

    Attributes:
        sent: It was accepted.
        refusal: Why it never will be, "" where it may be.
        answered: Whether the store said something.
    """

    sent: bool
    refusal: str = ""
    answered: bool = True


class Writer:
    """Starts a daemon thread that calls `open_run` once and then delivers until `finish`.

    Attributes:
        opened: Set when `open_run` has ended.
        failure: Why `open_run` failed; valid once `opened` is set.
        put_items: Items that were put.
        delivered_items: Items that were delivered.
        lost: Labels of the items that were not delivered and will not be.
        refusal: Why the store accepts no metrics of this run any more, "" while it does.
        check: Raises a KrayError where nothing may be delivered any more.
    """

    def __init__(
        self,
        journal: Journal,
        run: Destination,
        open_run: Callable[[], None],
        sample: Callable[[], Callable[[], dict[str, Any]]] | None = None,
        sample_every_s: float = 5.0,
        capacity: int = 10_000,
        gather_s: float = 0.0,
    ):
        """Start the thread.

        Args:
            journal: Holds the metrics.
            run: Receives what is delivered.
            open_run: Opens the run.
            sample: Called once after opening; returns a function that measures one row of system metrics.
            sample_every_s: Seconds between two rows.
            capacity: Items that may wait.
            gather_s: Least seconds between two deliveries: one of several short steps costs little more than one of one.
        """
        self.opened = threading.Event()
        self.failure: BaseException | None = None
        self.put_items = self.delivered_items = 0
        self.lost: list[str] = []
        self.refusal = ""
        self.check: Callable[[], None] = lambda: None
        self._halted = False
        self._journal, self._run, self._open_run = journal, run, open_run
        self._sample, self._sample_every_s = sample, sample_every_s
        self._take: Callable[[], dict[str, Any]] | None = None
        self._samples: deque[dict[str, Any]] = deque(maxlen=MAX_SAMPLES)
        self._queue: deque[Item] = deque()
        self._capacity, self._gather_s = capacity, gather_s
        self._lock = threading.Lock()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._breaker = Breaker()
        self._rows_attempts, self._batch_values = 0, BATCH_VALUES
        # Metric -> values of it that the store refused.
        self._refused: dict[str, int] = {}
        # The status to end with, and the deadline in monotonic seconds.
        self._closing: tuple[str, float] | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, label: str, send: Callable[[], None]) -> None:
        """Add an item to the queue; when the queue is full it is lost and reported."""
        with self._lock:
            self.put_items += 1
            if len(self._queue) >= self._capacity:
                self.lost.append(label)
            else:
                self._queue.append(Item(label, send))
        self._wake.set()

    def wake(self) -> None:
        """Note that there are new rows in the journal."""
        self._wake.set()

    @property
    def waiting(self) -> list[str]:
        """The labels of the items in the queue."""
        with self._lock:
            return [item.label for item in self._queue]

    def finish(self, status: str, deadline_s: float) -> bool:
        """Deliver what waits, end the run and stop the thread.

        Takes at most about deadline_s seconds plus one MLflow time-out, whatever the store does.

        Args:
            status: The status to end with.
            deadline_s: Seconds for deliveries.

        Returns:
            Whether the store has recorded the end of the run.
        """
        self._closing = (status, time.monotonic() + deadline_s)
        self._end_waits()
        self._thread.join(deadline_s + 10.0)
        return self._ended

    def abandon(self) -> None:
        """Give up a run that does not open: if it opens later, it ends at once as FAILED."""
        self._closing = ("FAILED", time.monotonic())
        self._end_waits()

    def halt(self) -> None:
        """Deliver nothing more, and leave the run as it is."""
        self._halted = True
        self._end_waits()

    def _end_waits(self) -> None:
        self._ending.set()
        self._wake.set()

    def _may_deliver(self) -> bool:
        try:
            self.check()
        except KrayError:
            self.halt()
        return not self._halted

    def _work(self) -> None:
        try:
            self._open_run()
            self._take = self._sample() if self._sample else None
        except BaseException as error:
            self.failure = error
            return
        finally:
            self.opened.set()
        sample_at = deliver_at = time.monotonic()
        while self._closing is None and self._may_deliver():
            now = time.monotonic()
            if self._take and now >= sample_at:
                self._measure()
                sample_at = now + self._sample_every_s
            if self._breaker.ready(now) and now >= deliver_at:
                self._deliver(float("inf"))
                deliver_at = time.monotonic() + self._gather_s
            pauses = [60.0]
            pauses += [sample_at - time.monotonic()] if self._take else []
            pauses += [self._breaker.until - time.monotonic()] if self._breaker.until else []
            self._wake.wait(max(0.05, min(pauses)))
            self._wake.clear()
            self._ending.wait(max(0.0, deliver_at - time.monotonic()))
        if self._closing is not None:
            self._close(*self._closing)

    def _close(self, status: str, deadline: float) -> None:
        while True:
            done = self._deliver(deadline)
            if self._halted:
                return
            if done or time.monotonic() >= deadline:
                break
            time.sleep(0.5)
        while not self._ended:
            try:
                self._run.end(status)
                self._ended = True
            except Exception as error:
                logger.warning("the end of the MLflow run could not be recorded: %s", redact(str(error)))
                if refusal(error) or time.monotonic() >= deadline:
                    break
                time.sleep(0.5)

    def _measure(self) -> None:
        try:
            self._samples.append(self._take())  # type: ignore[misc]
        except Exception as error:
            logger.warning("system metrics are no longer recorded: %s", error)
            self._take = None

    def _deliver(self, deadline: float) -> bool:
        """Send until nothing waits (True), something fails, or the deadline (monotonic seconds) has passed."""
        try:
            return self._send_all(deadline)
        except Exception as error:
            # The journal cannot be read; the thread goes on for the other items.
            self._breaker.failed(time.monotonic())
            logger.warning("metrics cannot be delivered: %s", error)
            return False

    def _send_all(self, deadline: float) -> bool:
        while time.monotonic() < deadline and self._may_deliver():
            rows, mark = self._journal.pending(self._batch_values)
            if rows and not self.refusal:
                if not self._send_rows(rows, mark):
                    return False
            elif self._queue:
                if not self._send_item(self._queue[0]):
                    return False
            elif self._samples:
                if not self._send_samples():
                    return False
            else:
                return True
        return False

    def _send_rows(self, rows: list[dict[str, Any]], mark: tuple[int, int]) -> bool:
        label = f"metrics of steps {rows[0]['step']} to {rows[-1]['step']}"
        attempt = self._attempt(label, lambda: self._send_values(rows))
        # The run as a whole is refused; its metrics wait in the journal for a resume.
        if attempt.refusal:
            self.refusal = attempt.refusal
            return True
        if attempt.sent:
            self._rows_attempts = 0
            self._batch_values = min(BATCH_VALUES, self._batch_values * 5 // 4)
        elif not attempt.answered:
            self._batch_values = max(LEAST_BATCH_VALUES, self._batch_values // 2)
            return False
        else:
            self._rows_attempts += self._run.answers()
            if self._rows_attempts < MAX_ATTEMPTS:
                return False
            self._rows_attempts = 0
            self.lost.append(label)
        self._journal.delivered(mark)
        return True

    def _send_values(self, rows: list[dict[str, Any]]) -> None:
        """Send all values that the store accepts; a metric that it has refused MAX_ATTEMPTS times is left out."""
        left_out = [name for name, times in self._refused.items() if times >= MAX_ATTEMPTS]
        for name, why in deliver_rows(rows, self._run.metrics, left_out):
            if name not in self._refused:
                self.lost.append(f"metric {name} ({redact(why)})")
                logger.warning("MLflow refuses %s", self.lost[-1])
            self._refused[name] = self._refused.get(name, 0) + 1

    def _send_samples(self) -> bool:
        batch = list(self._samples)[:BATCH_SAMPLES]
        attempt = self._attempt("system metrics", lambda: self._run.metrics(batch))
        if not attempt.sent and not attempt.refusal and not self._run.answers():
            return False
        # What a store refuses that answers is not sent again.
        for _ in batch:
            self._samples.popleft()
        return attempt.sent or bool(attempt.refusal)

    def _send_item(self, item: Item) -> bool:
        attempt = self._attempt(item.label, item.send)
        sent, why = attempt.sent, attempt.refusal
        if not sent and not why:
            item.attempts += self._run.answers()
            if item.attempts < MAX_ATTEMPTS:
                return False
        with self._lock:
            self._queue.popleft()
            if sent:
                self.delivered_items += 1
            else:
                self.lost.append(f"{item.label} ({why})" if why else item.label)
        return True

    def _attempt(self, label: str, send: Callable[[], None]) -> Attempt:
        try:
            send()
        except Exception as error:
            if why := redact(refusal(error)):
                self._breaker.worked()
                logger.warning("MLflow refuses %s: %s", label, why)
                return Attempt(False, why)
            self._breaker.failed(time.monotonic())
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.warning(
                "MLflow did not accept %s: %s; next attempt in %.0f s", label, redact(reason), self._breaker.wait_s
            )
            return Attempt(False, answered=not unanswered(error))
        self._breaker.worked()
        return Attempt(True)
