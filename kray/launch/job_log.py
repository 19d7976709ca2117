"""Follows a Ray job: prints its output to the end, stops it on Ctrl-C, and outlives a dashboard that is away for a while."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from typing import Any

from aiohttp import ClientError

from kray.errors import KrayError

STOP_S = 600.0  # between the end of a job's output and its end
AWAY_S = 300.0  # in which the output cannot be had before a job is let be
PAUSE_S = 2.0
STEADY_S = 10.0  # that a connection lasts which is more than an attempt
ASK_S = 60.0  # without output after which the job's status is asked, and that an answer may take
# What Ray's job client and the libraries under it raise without a dashboard.
LOST = (RuntimeError, OSError, ClientError)


def follow(client: Any, name: str) -> int:
    """The exit code of the job: its driver's, 130 when it was stopped. client: Ray's JobSubmissionClient.

    The first Ctrl-C or SIGTERM stops the job, as soon as the dashboard answers; the second leaves it. Raises KrayError when
    the dashboard stays away for AWAY_S (the job goes on) or does not know the job any more, or when the job does not end
    STOP_S after its output has.
    """
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)  # of closed connections
    usual = socket.getdefaulttimeout()
    socket.setdefaulttimeout(ASK_S)  # Ray's client sets none for its requests
    try:
        following = _Following(client, name)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, following.stop)
        status = following.to_the_end()
        if status.value == "SUCCEEDED":
            return 0
        if status.value == "STOPPED":
            print(f"job {name} was stopped")
            return 130
        return following.failed()
    finally:
        socket.setdefaulttimeout(usual)


class _Following:
    def __init__(self, client: Any, name: str):
        self.client, self.name = client, name
        self._said = 0  # characters: each connection begins the output anew
        self._stops = 0  # asked for
        self._to_tell = False  # the job has not been told yet

    def stop(self, *_: object) -> None:
        self._stops += 1
        if self._stops > 1:
            raise KeyboardInterrupt
        self._to_tell = True
        try:
            self._tell()
        except LOST as error:
            text = "will be told to stop when the dashboard answers; once more leaves it as it is"
            print(f"job {self.name} {text} ({error})", file=sys.stderr, flush=True)

    def _tell(self) -> None:
        if self._to_tell:
            self.client.stop_job(self.name)
            self._to_tell = False

    def failed(self) -> int:
        try:
            info = self.client.get_job_info(self.name)
        except LOST as error:
            print(f"job {self.name} failed; why cannot be had: {error}", file=sys.stderr)
            return 1
        if info.driver_exit_code is None:
            print(f"job {self.name}: {info.message}", file=sys.stderr)
        return info.driver_exit_code or 1

    def to_the_end(self) -> Any:
        """Prints the output; the job's last status."""
        away = ended = None  # since when: the output cannot be had; it has ended and the job has not
        status: Any = None
        while True:
            said, began = self._said, time.monotonic()
            try:
                status = self.client.get_job_status(self.name)
                self._tell()
                asyncio.run(self._tail())
                status = self.client.get_job_status(self.name)
            except LOST as error:  # a tunnel that was closed, a proxy that starts anew: the job does not mind
                if status is not None and status.is_terminal():
                    return status
                self._give_up_unless_known(error)
                if self._said > said or time.monotonic() - began > STEADY_S:
                    away = None
                away, ended = away or time.monotonic(), None
                if time.monotonic() - away > AWAY_S:
                    raise KrayError(
                        f"the output of job {self.name} could not be had for {AWAY_S:.0f} s ({error}); it goes on: `ray job "
                        f"logs --follow {self.name}` shows it, `ray job stop {self.name}` stops it"
                    ) from error
                time.sleep(PAUSE_S)
                continue
            if status.is_terminal():
                return status
            now, away = time.monotonic(), None
            ended = now if ended is None or self._said > said else ended
            if now - ended > STOP_S:
                raise KrayError(f"job {self.name} is still {status} {STOP_S:.0f} s after its last line")
            time.sleep(0.2)

    def _give_up_unless_known(self, error: Exception) -> None:
        if "status code 404" in str(error) or "does not exist" in str(error):
            raise KrayError(
                f"job {self.name} is not known any more, as after a new start of Ray's head: {error}"
            ) from error

    async def _tail(self) -> None:
        """Prints what has not been printed yet, until the output ends. Raises LOST."""
        lines = self.client.tail_job_logs(self.name)
        seen = 0
        while True:
            coming = asyncio.ensure_future(anext(lines, None))
            while not (await asyncio.wait({coming}, timeout=ASK_S))[0]:
                # A connection may be dead and not say so.
                await asyncio.to_thread(self.client.get_job_status, self.name)
            text = coming.result()
            if text is None:
                return
            seen += len(text)
            if seen > self._said:
                print(text[self._said - seen :], end="", flush=True)
                self._said = seen
