"""The one thread that talks to MLflow.

Nothing that it does can block or stop a run: metrics wait in the journal on disk, other things in a bounded queue, and
both are delivered in order, metrics first. When the store does not answer, the breaker opens and the writer tries again
ever more rarely; what fails three times although the store answers is given up and reported. What the store refuses for good
(refusals.py) is reported once and not tried again, and costs nothing that was to be delivered with it.
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
from kray.tracking.journal import Journal
from kray.tracking.refusals import deliver_rows, refusal

log = logging.getLogger(__name__)
BATCH_VALUES = 1000
MAX_ATTEMPTS = 3


class Destination(Protocol):
    """What the writer needs of a run."""

    def alive(self) -> bool: ...
    def metrics(self, rows: list[dict[str, Any]]) -> None: ...
    def end(self, status: str) -> None: ...


@dataclass
class Breaker:
    """When to try again. Pure: `now` in seconds, monotonic. Waits double from first_s to longest_s."""

    first_s: float = 1.0
    longest_s: float = 30.0
    wait_s: float = 0.0
    until: float = 0.0

    def failed(self, now: float) -> None:
        self.wait_s = min(max(2 * self.wait_s, self.first_s), self.longest_s)
        self.until = now + self.wait_s

    def worked(self) -> None:
        self.wait_s = self.until = 0.0

    def ready(self, now: float) -> bool:
        return now >= self.until


@dataclass
class Item:
    """Something to deliver: what to call it in a report, and the call that delivers it."""

    label: str
    send: Callable[[], None]
    attempts: int = 0


class Writer:
    """Starts a daemon thread that calls `open_run` once and then delivers until `finish`."""

    def __init__(
        self,
        journal: Journal,
        run: Destination,
        open_run: Callable[[], None],
        sample: Callable[[], Callable[[], dict[str, Any]]] | None = None,
        sample_every_s: float = 5.0,
        capacity: int = 10_000,
    ):
        """sample: called once after opening; gives a function that takes one row of system metrics."""
        self.opened = threading.Event()
        self.failure: BaseException | None = None  # why opening failed; valid once opened is set
        self.put_items = self.delivered_items = 0
        self.lost: list[str] = []
        self.refusal = ""  # why the store takes no metrics of this run any more
        self._journal, self._run, self._open_run = journal, run, open_run
        self._sample, self._sample_every_s = sample, sample_every_s
        self._take: Callable[[], dict[str, Any]] | None = None
        self._samples: deque[dict[str, Any]] = deque(maxlen=2000)
        self._queue: deque[Item] = deque()
        self._capacity = capacity
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._breaker = Breaker()
        self._rows_attempts = 0
        self._refused: dict[str, int] = {}  # name of a metric -> values of it that the store refused
        self._closing: tuple[str, float] | None = None  # status, deadline
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, label: str, send: Callable[[], None]) -> None:
        """Deliver `send` when its turn comes; when the queue is full it is lost and reported, never waited for."""
        with self._lock:
            self.put_items += 1
            if len(self._queue) >= self._capacity:
                self.lost.append(label)
            else:
                self._queue.append(Item(label, send))
        self._wake.set()

    def wake(self) -> None:
        """There are new rows in the journal."""
        self._wake.set()

    @property
    def waiting(self) -> list[str]:
        """Labels of what is still in the queue."""
        with self._lock:
            return [item.label for item in self._queue]

    def finish(self, status: str, deadline_s: float) -> bool:
        """Deliver what waits, end the run, stop; True when the store knows that the run has ended.

        Returns after about deadline_s seconds at the latest, plus one MLflow time-out, whatever the store does.
        """
        self._closing = (status, time.monotonic() + deadline_s)
        self._wake.set()
        self._thread.join(deadline_s + 10.0)
        return self._ended

    def abandon(self) -> None:
        """Give up on a run that does not open: should it open after all, it ends at once as FAILED."""
        self._closing = ("FAILED", time.monotonic())

    def _work(self) -> None:
        try:
            self._open_run()
            self._take = self._sample() if self._sample else None
        except BaseException as error:
            self.failure = error
            return
        finally:
            self.opened.set()
        sample_at = time.monotonic()
        while self._closing is None:
            now = time.monotonic()
            if self._take and now >= sample_at:
                self._measure()
                sample_at = now + self._sample_every_s
            if self._breaker.ready(now):
                self._deliver(float("inf"))
            pauses = [60.0]
            pauses += [sample_at - time.monotonic()] if self._take else []
            pauses += [self._breaker.until - time.monotonic()] if self._breaker.until else []
            self._wake.wait(max(0.05, min(pauses)))
            self._wake.clear()
        self._close(*self._closing)

    def _close(self, status: str, deadline: float) -> None:
        while True:
            done = self._deliver(deadline)
            if done or time.monotonic() >= deadline:
                break
            time.sleep(0.5)
        while not self._ended:
            try:
                self._run.end(status)
                self._ended = True
            except Exception as error:
                log.warning("MLflow run not ended: %s", redact(str(error)))
                if refusal(error) or time.monotonic() >= deadline:
                    break
                time.sleep(0.5)

    def _measure(self) -> None:
        try:
            self._samples.append(self._take())  # type: ignore[misc]
        except Exception as error:
            log.warning("system metrics stop: %s", error)
            self._take = None

    def _deliver(self, deadline: float) -> bool:
        """Send until nothing waits (True), something fails, or the deadline (monotonic seconds) has passed."""
        try:
            return self._send_all(deadline)
        except Exception as error:  # the journal cannot be read: the thread must live on for the rest
            self._breaker.failed(time.monotonic())
            log.warning("metrics cannot be delivered: %s", error)
            return False

    def _send_all(self, deadline: float) -> bool:
        while time.monotonic() < deadline:
            rows, mark = self._journal.pending(BATCH_VALUES)
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
        sent, why = self._attempt(label, lambda: self._send_values(rows))
        if why:  # the run as a whole is refused: its metrics wait in the journal for a resume
            self.refusal = why
            return True
        if sent:
            self._rows_attempts = 0
        else:
            self._rows_attempts += self._run.alive()
            if self._rows_attempts < MAX_ATTEMPTS:
                return False
            self._rows_attempts = 0
            self.lost.append(label)
        self._journal.delivered(mark)
        return True

    def _send_values(self, rows: list[dict[str, Any]]) -> None:
        """All values that the store takes; a name that it refuses again and again is not sent any more."""
        hopeless = [name for name, times in self._refused.items() if times >= MAX_ATTEMPTS]
        for name, why in deliver_rows(rows, self._run.metrics, hopeless):
            if name not in self._refused:
                self.lost.append(f"metric {name} ({redact(why)})")
                log.warning("MLflow refuses %s", self.lost[-1])
            self._refused[name] = self._refused.get(name, 0) + 1

    def _send_samples(self) -> bool:
        batch = list(self._samples)[:50]
        sent, why = self._attempt("system metrics", lambda: self._run.metrics(batch))
        if not sent and not why and not self._run.alive():
            return False
        for _ in batch:  # refused by a store that answers: not worth a second attempt
            self._samples.popleft()
        return sent or bool(why)

    def _send_item(self, item: Item) -> bool:
        sent, why = self._attempt(item.label, item.send)
        if not sent and not why:
            item.attempts += self._run.alive()
            if item.attempts < MAX_ATTEMPTS:
                return False
        with self._lock:
            self._queue.popleft()
            if sent:
                self.delivered_items += 1
            else:
                self.lost.append(f"{item.label} ({why})" if why else item.label)
        return True

    def _attempt(self, label: str, send: Callable[[], None]) -> tuple[bool, str]:
        """(whether it was taken, why it never will be)."""
        try:
            send()
        except Exception as error:
            if why := redact(refusal(error)):
                self._breaker.worked()  # the store has answered
                log.warning("MLflow refuses %s: %s", label, why)
                return False, why
            self._breaker.failed(time.monotonic())
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.warning(
                "MLflow did not take %s: %s; next attempt in %.0f s", label, redact(reason), self._breaker.wait_s
            )
            return False, ""
        self._breaker.worked()
        return True, ""
