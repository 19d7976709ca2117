"""One scoring process: reads chunks of answers, sends each outcome as soon as it is known.

Speaks over one socket, in frames of a 4-byte length and a message. In, pickled: (verifier, options, timeout_s, memory_gib)
once, then lists of (verifier, response, answer). Out, in JSON, so that nothing that a verifier writes can run code in the
parent: ["ready"] once; ["loading"] and ["loaded"] around the import of a further verifier; one ["scored", value, detail,
elapsed_s] or ["failed", error, elapsed_s] per answer, in order. A function with an attribute `gives_no_reward` is no
verifier, but is called like one: the `plain()` of what it gives, which JSON must hold, is sent as ["given", plain, elapsed_s].

It ends when its parent does: on end of file, by a thread that watches the socket while a verifier runs, and by an alarm
for verifiers that never let that thread run (a regular expression holds the interpreter's lock).
"""

from __future__ import annotations

import json
import math
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
_SAYS: dict[str, tuple[type, ...]] = {  # kind of message -> what comes after it
    "ready": (),
    "loading": (),
    "loaded": (),
    "scored": (float, str, float),
    "failed": (str, float),
    "given": (object, float),
}


def order(message: Any) -> bytes:
    """The frame of a message to a scoring process."""
    return _frame(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def taken(buffer: bytearray) -> list[list[Any]]:
    """The messages of a scoring process that are complete, taken out of what came from it.

    Raises ConnectionError when the first is no message: a verifier wrote it.
    """
    messages: list[list[Any]] = []
    while len(buffer) >= HEADER.size and len(buffer) >= (end := HEADER.size + HEADER.unpack_from(buffer)[0]):
        try:
            messages.append(_message(buffer[HEADER.size : end]))
        except (ValueError, RecursionError) as error:
            if messages:
                break
            raise ConnectionError(f"no message of a scoring process: {error}") from None
        del buffer[:end]
    return messages


def _message(body: bytearray) -> list[Any]:
    message = json.loads(body)
    kind, *rest = message if isinstance(message, list) and message else [None]
    kinds = _SAYS.get(kind) if isinstance(kind, str) else None
    if kinds is None or len(kinds) != len(rest) or not all(map(isinstance, rest, kinds)):
        raise ValueError(f"{kind!r:.40}")
    if not all(math.isfinite(value) for value in rest if isinstance(value, float)):
        raise ValueError(f"{kind} with a number that is not finite")
    return message


def _said(message: tuple) -> bytes:
    return _frame(json.dumps(message).encode())


def _frame(body: bytes) -> bytes:
    return HEADER.pack(len(body)) + body


def main(descriptor: int) -> None:
    """Serve until the parent closes its end of the socket `descriptor`."""
    connection = socket.socket(fileno=descriptor)
    stream = connection.makefile("rb")
    default, options, timeout_s, memory_gib = _read(stream)
    _limit_memory(memory_gib)
    threading.Thread(target=_end_with_parent, args=(connection.fileno(),), daemon=True).start()
    loaded: dict[str, Verifier | str] = {default: _load(default)}
    connection.sendall(_said(("ready",)))
    while (chunk := _read(stream)) is not None:
        for verifier, response, answer in chunk:
            if verifier not in loaded:
                connection.sendall(_said(("loading",)))
                loaded[verifier] = _load(verifier)
                connection.sendall(_said(("loaded",)))
            signal.setitimer(signal.ITIMER_REAL, timeout_s + _ALARM_SLACK_S)
            outcome = _judge(loaded[verifier], verifier, response, answer, options if verifier == default else {})
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.sendall(_said(outcome))
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
        given: Any = function(response, answer, **options)
        if getattr(function, "gives_no_reward", False):
            plain = given.plain()
            json.dumps(plain)
            return ("given", plain, time.perf_counter() - started)
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
