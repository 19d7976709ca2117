"""One scoring process: reads chunks of answers, sends each outcome as soon as it is known.

Speaks over one socket: frames of a 4-byte length and a pickle. In: (verifier, options, timeout_s, memory_gib) once, then
lists of (verifier, response, answer). Out: ("ready",) once; ("loading",) and ("loaded",) around the import of a further
verifier; one ("scored", value, detail, elapsed_s) or ("failed", error, elapsed_s) per answer, in order. A function with an
attribute `gives_no_reward` is no verifier, but is called like one: what it gives is sent as ("given", value, elapsed_s).

It ends when its parent does: on end of file, by a thread that watches the socket while a verifier runs, and by an alarm
for verifiers that never let that thread run (a regular expression holds the interpreter's lock).
"""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import socket
import struct
import threading
import time
import traceback
from typing import Any, BinaryIO

from kray.rewards.verifiers import Verifier, as_reward, load_verifier

HEADER = struct.Struct("<I")
_ALARM_SLACK_S = 5.0  # the parent's deadline comes first; the alarm is for a worker that has lost its parent
_ERROR_CHARACTERS = 500


def frame(message: Any) -> bytes:
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(body)) + body


def main(descriptor: int) -> None:
    """Serve until the parent closes its end of the socket `descriptor`."""
    connection = socket.socket(fileno=descriptor)
    stream = connection.makefile("rb")
    default, options, timeout_s, memory_gib = _read(stream)
    _limit_memory(memory_gib)
    threading.Thread(target=_end_with_parent, args=(connection.fileno(),), daemon=True).start()
    loaded: dict[str, Verifier | str] = {default: _load(default)}
    connection.sendall(frame(("ready",)))
    while (chunk := _read(stream)) is not None:
        for verifier, response, answer in chunk:
            if verifier not in loaded:
                connection.sendall(frame(("loading",)))
                loaded[verifier] = _load(verifier)
                connection.sendall(frame(("loaded",)))
            signal.setitimer(signal.ITIMER_REAL, timeout_s + _ALARM_SLACK_S)
            outcome = _judge(loaded[verifier], verifier, response, answer, options if verifier == default else {})
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.sendall(frame(outcome))
    os._exit(0)  # a verifier's own threads must not keep the process


def _limit_memory(gib: float) -> None:
    """Of data, not of address space: libraries reserve much that they never use. 0: no limit."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if gib and (hard == resource.RLIM_INFINITY or gib * 2**30 < hard):
        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30), hard))


def _judge(function: Verifier | str, name: str, response: Any, answer: Any, options: dict[str, Any]) -> tuple:
    started = time.perf_counter()
    try:
        if isinstance(function, str):
            raise ValueError(function)
        given = function(response, answer, **options)
        if getattr(function, "gives_no_reward", False):
            return ("given", given, time.perf_counter() - started)
        reward = as_reward(given, name)
        return ("scored", reward.value, reward.detail, time.perf_counter() - started)
    except BaseException as error:  # also SystemExit: a verifier must not end the process by a polite exit
        return ("failed", _describe(error), time.perf_counter() - started)


def _describe(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS]
    frames = traceback.extract_tb(error.__traceback__)
    if len(frames) > 1:  # the first is this file
        text += f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})"
    return text


def _load(name: str) -> Verifier | str:
    """The verifier, or why it cannot be had: said for each answer that needs it."""
    try:
        return load_verifier(name)
    except BaseException as error:
        return str(error)


def _read(stream: BinaryIO) -> Any:
    """The next message; None at the end."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    body = stream.read(HEADER.unpack(header)[0])
    return pickle.loads(body)


def _end_with_parent(descriptor: int) -> None:
    watch = select.poll()
    watch.register(descriptor, getattr(select, "POLLRDHUP", 0))  # hang-up and error are always watched
    watch.poll()
    os._exit(1)
