"""Follows a Ray job: prints its output to the end, stops it on Ctrl-C, and reconnects while the dashboard is away."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from typing import Any

from aiohttp import ClientError

from kray.driver.stop_signals import caught
from kray.errors import KrayError

# Seconds between the end of a job's output and its own end.
STOP_S = 600.0
# Seconds without a connection after which a job is no longer followed.
AWAY_S = 300.0
# Seconds between two attempts to connect, and those for which a connection must last to count as restored.
PAUSE_S = 2.0
STEADY_S = 10.0
# Seconds without output after which the job's status is requested, and those that the answer may take.
ANSWER_S = 60.0
# What Ray's job client and the libraries under it raise without a dashboard.
CONNECTION_ERRORS = (RuntimeError, OSError, ClientError)


def follow(client: Any, name: str) -> int:
    """Print a job's output until it ends.

    The first Ctrl-C, SIGTERM or SIGHUP stops the job, as soon as the dashboard answers; the second one leaves it running.

    Args:
        client: Ray's JobSubmissionClient.
        name: The job's submission id.

    Returns:
        The exit code of the job's command; 130 when the job was stopped.

    Raises:
        KrayError: The dashboard stays away for AWAY_S (the job goes on) or does not know the job any more, or the job does
            not end within STOP_S of its last line.
    """
    # Ray logs every closed connection.
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)
    before = socket.getdefaulttimeout()
    # Ray's client sets no time limit for its requests.
    socket.setdefaulttimeout(ANSWER_S)
    try:
        job = _FollowedJob(client, name)
        with caught(job.stop):
            status = job.print_to_the_end()
        if status.value == "SUCCEEDED":
            return 0
        if status.value == "STOPPED":
            print(f"job {name} was stopped")
            return 130
        return job.exit_code()
    finally:
        socket.setdefaulttimeout(before)


class _FollowedJob:
    def __init__(self, client: Any, name: str):
        self.client, self.name = client, name
        # Characters that have been printed: every connection sends the output from its beginning.
        self._printed = 0
        self._signals = 0
        # A stop that the dashboard has not taken yet.
        self._stop_pending = False

    def stop(self, name: str = "") -> None:
        """Stop the job now or when the dashboard answers; the second call interrupts this process."""
        self._signals += 1
        if self._signals > 1:
            raise KeyboardInterrupt
        self._stop_pending = True
        try:
            self._send_stop()
        except CONNECTION_ERRORS as error:
            text = "will be stopped when the dashboard answers; a second Ctrl-C leaves it running"
            print(f"job {self.name} {text} ({error})", file=sys.stderr, flush=True)

    def _send_stop(self) -> None:
        if self._stop_pending:
            self.client.stop_job(self.name)
            self._stop_pending = False

    def exit_code(self) -> int:
        """Return the exit code of a job that failed; print why where its command has none."""
        try:
            info = self.client.get_job_info(self.name)
        except CONNECTION_ERRORS as error:
            print(f"job {self.name} failed; the reason cannot be read: {error}", file=sys.stderr)
            return 1
        if info.driver_exit_code is None:
            print(f"job {self.name}: {info.message}", file=sys.stderr)
        return info.driver_exit_code or 1

    def print_to_the_end(self) -> Any:
        """Print the output until the job ends; return its last status."""
        # Since when the output cannot be read, and since when it has ended although the job has not.
        away = ended = None
        status: Any = None
        while True:
            printed, began = self._printed, time.monotonic()
            try:
                status = self.client.get_job_status(self.name)
                self._send_stop()
                asyncio.run(self._print_new_output())
                status = self.client.get_job_status(self.name)
            except CONNECTION_ERRORS as error:
                # A tunnel was closed or a proxy restarts: the job is not affected.
                if status is not None and status.is_terminal():
                    return status
                self._raise_if_unknown(error)
                if self._printed > printed or time.monotonic() - began > STEADY_S:
                    away = None
                away, ended = away or time.monotonic(), None
                if time.monotonic() - away > AWAY_S:
                    raise KrayError(
                        f"the output of job {self.name} could not be read for {AWAY_S:.0f} s ({error}); it goes on: `ray job "
                        f"logs --follow {self.name}` shows it, `ray job stop {self.name}` stops it"
                    ) from error
                time.sleep(PAUSE_S)
                continue
            if status.is_terminal():
                return status
            now, away = time.monotonic(), None
            ended = now if ended is None or self._printed > printed else ended
            if now - ended > STOP_S:
                raise KrayError(f"job {self.name} is still {status} {STOP_S:.0f} s after its last line")
            time.sleep(0.2)

    def _raise_if_unknown(self, error: Exception) -> None:
        if "status code 404" in str(error) or "does not exist" in str(error):
            raise KrayError(
                f"Ray does not know job {self.name} any more, as after a restart of its head: {error}"
            ) from error

    async def _print_new_output(self) -> None:
        """Print what has not been printed yet, until the output ends or the connection is lost."""
        lines = self.client.tail_job_logs(self.name)
        received = 0
        while True:
            coming = asyncio.ensure_future(anext(lines, None))
            while not (await asyncio.wait({coming}, timeout=ANSWER_S))[0]:
                # A lost connection may go unnoticed; this request fails then.
                await asyncio.to_thread(self.client.get_job_status, self.name)
            text = coming.result()
            if text is None:
                return
            received += len(text)
            if received > self._printed:
                print(text[self._printed - received :], end="", flush=True)
                self._printed = received
