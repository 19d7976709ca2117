"""Messages between the driver and a session host: frames of a 4-byte length and a body.

Requests are pickled, as the driver alone writes them. Replies are JSON, so that nothing that an environment writes can run code
in the driver.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import struct
from typing import Any

_HEADER = struct.Struct("<I")


def request_frame(message: Any) -> bytes:
    """Return the frame of a request."""
    return _frame(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def reply_frame(message: dict[str, Any]) -> bytes:
    """Return the frame of a reply, which must be JSON-serializable."""
    return _frame(json.dumps(message, allow_nan=False).encode())


async def read_request(reader: asyncio.StreamReader) -> Any:
    """Return the next request.

    Raises:
        EOFError: The driver has closed its end.
    """
    return pickle.loads(await _read(reader))


async def read_reply(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Return the next reply.

    Raises:
        EOFError: The host has exited.
        ValueError: What arrived is no reply.
    """
    reply = json.loads(await _read(reader))
    if not isinstance(reply, dict):
        raise ValueError(f"a {type(reply).__name__} is no reply")
    return reply


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    return await reader.readexactly(length)


def _frame(body: bytes) -> bytes:
    return _HEADER.pack(len(body)) + body
