"""What a job hears of its driver while it follows it: signs of life, and whether their Ray is lost."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Any

from kray.cluster.lost_ray import RayLoss

logger = logging.getLogger(__name__)

# Seconds between two questions, after which silence is reported, between two such reports, and for a driver to start.
ASK_S, SILENT_S, AGAIN_S, START_S = 2.0, 15.0, 60.0, 300.0
# Seconds after the death of a driver within which that of its node shows.
NOTICE_S = 1.0


class Silence:
    """Decides when to say that nothing is heard. Pure: `now` is in monotonic seconds, `clock` in seconds since 1970."""

    def __init__(self, now: float, clock: float, start_s: float = START_S):
        """Begin when a driver is started, which may be silent for `start_s` seconds."""
        self._heard, self._patience = (now, clock), start_s
        self._said_at: float | None = None

    def heard(self, now: float, clock: float) -> str:
        """Note a sign of life; return a line if its absence was reported, else ""."""
        silent_s, reported = now - self._heard[0], self._said_at is not None
        self._heard, self._patience, self._said_at = (now, clock), SILENT_S, None
        return f"the driver answers again, after {silent_s:.0f} s" if reported else ""

    def line(self, now: float) -> str:
        """Return what is to be said now, "" for nothing."""
        silent_s = now - self._heard[0]
        due = self._patience if self._said_at is None else self._said_at - self._heard[0] + AGAIN_S
        if silent_s < due:
            return ""
        self._said_at = now
        since = time.strftime("%H:%M:%S", time.localtime(self._heard[1]))
        return f"nothing has been heard of the driver since {since} ({silent_s:.0f} s): it was stopped, or is kept busy"


class Watch:
    """Asks a driver for signs of life and Ray for its own, in threads, until closed.

    Attributes:
        lost: Why Ray is lost, "" while it is not.
        driver_process: What identifies the driver's process, {} until the driver has given a sign of life.
    """

    def __init__(self, driver: Any):
        self.lost, self.driver_process = "", dict[str, Any]()
        self._driver, self._closed = driver, threading.Event()
        self._silence = Silence(time.monotonic(), time.time())
        self._loss = RayLoss()
        for work in (self._ask_driver, self._ask_ray):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def close(self) -> None:
        """End the watch."""
        self._closed.set()

    @property
    def can_save(self) -> bool:
        """Whether a driver whose Ray is lost may go on for a moment: its raylet is there."""
        return self._loss.local and "raylet" not in self.lost

    def lost_now(self) -> str:
        """Return why Ray is lost after an error of the driver, which dies with its node."""
        deadline = time.monotonic() + NOTICE_S
        while not self.lost and time.monotonic() < deadline:
            self.lost = self._loss.node_ended()
            time.sleep(NOTICE_S / 10)
        return self.lost

    def report(self) -> None:
        """Log that nothing is heard of the driver, when that is due."""
        if line := self._silence.line(time.monotonic()):
            logger.warning(line)

    def _ask_driver(self) -> None:
        import ray

        question = None
        while not self._closed.wait(ASK_S):
            # Errors are those of the call that is followed.
            with contextlib.suppress(Exception):
                question = question or self._driver.alive.remote()
                if ray.wait([question], timeout=ASK_S)[0]:
                    answer, question = question, None
                    self.driver_process = ray.get(answer)
                    if line := self._silence.heard(time.monotonic(), time.time()):
                        logger.info(line)

    def _ask_ray(self) -> None:
        while not self._closed.wait(ASK_S):
            # Ray's own errors say less than the next answer.
            with contextlib.suppress(Exception):
                self.lost = self._loss.why()
                if self.lost:
                    return
