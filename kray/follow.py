"""Follows a Ray job: prints its output to the end, stops it on Ctrl-C, and outlives a dashboard that is away for a while."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from typing import Any

from aiohttp import ClientError

from kray.records import KrayError

STOP_S = 600.0  # between the end of a job's output and its end
AWAY_S = 300.0  # without an answer before a job is let be
PAUSE_S = 2.0
LOST = (
    RuntimeError,
    OSError,
    ClientError,
)  # what Ray's job client and the libraries under it raise without a dashboard


def follow(client: Any, name: str) -> int:
    """The exit code of the job: its driver's, 130 when it was stopped. client: Ray's JobSubmissionClient.

    The first Ctrl-C or SIGTERM stops the job, the second leaves it. Raises KrayError when the dashboard stays away for
    AWAY_S (the job goes on), or the job does not end STOP_S after its output has.
    """
    stopping: list[int] = []

    def stop(*_: object) -> None:
        stopping.append(1)
        if len(stopping) > 1:
            raise KeyboardInterrupt
        try:
            client.stop_job(name)
        except LOST as error:
            print(f"job {name} could not be told to stop: {error}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)  # of closed connections
    status = _to_the_end(client, name)
    if status.value == "SUCCEEDED":
        return 0
    if status.value == "STOPPED":
        print(f"job {name} was stopped")
        return 130
    info = client.get_job_info(name)
    if info.driver_exit_code is None:
        print(f"job {name}: {info.message}", file=sys.stderr)
    return info.driver_exit_code or 1


def _to_the_end(client: Any, name: str) -> Any:
    """Prints the job's output; its last status."""
    said = 0  # characters: each connection begins the output anew

    async def tail() -> None:
        nonlocal said
        seen = 0
        async for lines in client.tail_job_logs(name):
            seen += len(lines)
            if seen > said:
                print(lines[said - seen :], end="", flush=True)
                said = seen

    away = ended = None  # since when: the dashboard does not answer; the output has ended and the job has not
    while True:
        before = said
        try:
            client.get_job_status(name)
            away = None
            asyncio.run(tail())
            status = client.get_job_status(name)
        except LOST as error:  # a tunnel that was closed, a proxy that starts anew: the job does not mind
            away, ended = away or time.monotonic(), None
            if time.monotonic() - away > AWAY_S:
                raise KrayError(
                    f"the dashboard has not answered for {AWAY_S:.0f} s ({error}); job {name} goes on: "
                    f"`ray job logs --follow {name}` shows it, `ray job stop {name}` stops it"
                ) from error
            time.sleep(PAUSE_S)
            continue
        if status.is_terminal():
            return status
        now = time.monotonic()
        ended = now if ended is None or said > before else ended
        if now - ended > STOP_S:
            raise KrayError(f"job {name} is still {status} {STOP_S:.0f} s after its last line")
        time.sleep(0.2)
