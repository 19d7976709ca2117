"""One scoring process: reads chunks of answers and sends each outcome as soon as it is known.

Both directions use one socket and frames of a 4-byte length and a message. Requests are pickled, as the parent alone writes
them: (default, table, timeout_s, memory_gib) once, where the table has the verifier and the options behind a name, then lists
of (name, response, answer or Sample); a name that is not in the table is a verifier without options. Replies are JSON, so that
nothing a verifier writes can run code in the parent: ["ready"] once; ["loading"] and ["loaded"] around the import of a further
verifier; one ["scored", value, detail, elapsed_s] or, of a function that declares its range, ["ranged", value, detail, low,
high, elapsed_s], ["failed", error, elapsed_s] or, of a function that does not apply to the
prompt, ["skipped", elapsed_s] per answer, in order. A function with an attribute `gives_no_reward` is called like a verifier,
but the `plain()` of its result, which must be JSON-serializable, is sent as ["given", plain, elapsed_s].

The process exits when its parent does: on end of file, by a thread that polls the socket while a verifier runs, and by an
alarm for verifiers that never let that thread run (a regular expression holds the interpreter lock).
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

from kray.rewards.reward import as_reward
from kray.rewards.signatures import NOT_APPLICABLE, call_reward
from kray.rewards.verifiers import Verifier, declared_range, load_verifier
from kray.text import describe

_HEADER = struct.Struct("<I")
# Seconds after the deadline. The parent acts at the deadline; the alarm is for a worker whose parent has exited.
_ALARM_SLACK_S = 5.0
_ERROR_CHARACTERS = 500
# Kind of reply -> types of its fields.
_REPLIES: dict[str, tuple[type, ...]] = {
    "ready": (),
    "loading": (),
    "loaded": (),
    "scored": (float, str, float),
    "ranged": (float, str, float, float, float),
    "failed": (str, float),
    "skipped": (float,),
    "given": (object, float),
}


def encode_request(message: Any) -> bytes:
    """Return the frame of a message to a scoring process."""
    return _frame(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def take_replies(buffer: bytearray) -> list[list[Any]]:
    """Remove the complete replies of a scoring process from a buffer and return them.

    Args:
        buffer: Bytes that were received and not yet taken; what is left is incomplete.

    Raises:
        ConnectionError: The first message is no valid reply: a verifier wrote to the socket.
    """
    replies: list[list[Any]] = []
    while len(buffer) >= _HEADER.size and len(buffer) >= (end := _HEADER.size + _HEADER.unpack_from(buffer)[0]):
        try:
            replies.append(_decode_reply(buffer[_HEADER.size : end]))
        except (ValueError, RecursionError) as error:
            if replies:
                break
            raise ConnectionError(f"not a reply of a scoring process: {error}") from None
        del buffer[:end]
    return replies


def _decode_reply(body: bytearray) -> list[Any]:
    message: Any = json.loads(body)
    kind: Any
    rest: list[Any]
    kind, *rest = message if isinstance(message, list) and message else [None]
    types = _REPLIES.get(kind) if isinstance(kind, str) else None
    if types is None or len(types) != len(rest) or not all(map(isinstance, rest, types)):
        raise ValueError(f"{kind!r:.40}")
    if not all(math.isfinite(value) for value in rest if isinstance(value, float)):
        raise ValueError(f"{kind} with a number that is not finite")
    if kind == "ranged" and not 0 < rest[3] - rest[2] < math.inf:
        raise ValueError(f"{kind} with no range")
    return message


def _encode_reply(message: tuple) -> bytes:
    return _frame(json.dumps(message).encode())


def _frame(body: bytes) -> bytes:
    return _HEADER.pack(len(body)) + body


def main(descriptor: int) -> None:
    """Serve until the parent closes its end of the socket `descriptor`."""
    connection = socket.socket(fileno=descriptor)
    stream = connection.makefile("rb")
    default, table, timeout_s, memory_gib = _read(stream)
    limit_memory(memory_gib)
    threading.Thread(target=_end_with_parent, args=(connection.fileno(),), daemon=True).start()
    loaded: dict[str, Verifier | str] = {default: _load(table.get(default, (default, {}))[0])}
    connection.sendall(_encode_reply(("ready",)))
    while (chunk := _read(stream)) is not None:
        for name, response, answer in chunk:
            verifier, options = table.get(name, (name, {}))
            if name not in loaded:
                connection.sendall(_encode_reply(("loading",)))
                loaded[name] = _load(verifier)
                connection.sendall(_encode_reply(("loaded",)))
            signal.setitimer(signal.ITIMER_REAL, timeout_s + _ALARM_SLACK_S)
            outcome = _score(loaded[name], verifier, response, answer, options)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.sendall(_encode_reply(outcome))
    # Threads that a verifier started must not keep the process running.
    os._exit(0)


def limit_memory(gib: float) -> None:
    """Limit this process's data rather than address space, of which libraries reserve much that they never use. 0: no limit."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if gib and (hard == resource.RLIM_INFINITY or gib * 2**30 < hard):
        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30), hard))


def _score(function: Verifier | str, name: str, response: Any, answer: Any, options: dict[str, Any]) -> tuple:
    started = time.perf_counter()
    try:
        if isinstance(function, str):
            raise ValueError(function)
        result: Any = call_reward(function, response, answer, options)
        if result is NOT_APPLICABLE:
            return ("skipped", time.perf_counter() - started)
        if getattr(function, "gives_no_reward", False):
            plain = result.plain()
            json.dumps(plain)
            return ("given", plain, time.perf_counter() - started)
        reward = as_reward(result, name)
        ends = declared_range(function, name)
        if ends is not None:
            return ("ranged", reward.value, reward.detail, *ends, time.perf_counter() - started)
        return ("scored", reward.value, reward.detail, time.perf_counter() - started)
    # SystemExit, too: a verifier that calls sys.exit must not end the process.
    except BaseException as error:
        return ("failed", _describe(error), time.perf_counter() - started)


def _describe(error: BaseException) -> str:
    text = describe(error, _ERROR_CHARACTERS)
    frames = traceback.extract_tb(error.__traceback__)
    # The first frame is this file.
    if len(frames) > 1:
        text += f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})"
    return text


def _load(name: str) -> Verifier | str:
    """Return the verifier, or why it cannot be loaded, which is reported for each answer that needs it."""
    try:
        return load_verifier(name)
    except BaseException as error:
        return describe(error).removeprefix("ValueError: ")


def _read(stream: BinaryIO) -> Any:
    """Return the next request; None at end of file."""
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    body = stream.read(_HEADER.unpack(header)[0])
    return pickle.loads(body)


def _end_with_parent(descriptor: int) -> None:
    watch = select.poll()
    # Hang-up and error are always polled for.
    watch.register(descriptor, getattr(select, "POLLRDHUP", 0))
    watch.poll()
    os._exit(1)
