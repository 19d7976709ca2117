"""A connection whose request head does not arrive is closed, and no other one is."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest
import uvicorn

from kray.serve.head_deadline import HeadDeadline

LIMIT_S = 0.3


class Short(HeadDeadline):
    head_timeout_s = LIMIT_S


async def app(scope, receive, send):
    await receive()
    # Longer than a head may take.
    await asyncio.sleep(2 * LIMIT_S if scope["path"] == "/slow" else 0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def exchanged(*parts: tuple[float, bytes]) -> tuple[bytes, float]:
    """Return what a server answers until it closes the connection, and how long that took; parts are sent after a wait each."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            app, http=Short, lifespan="off", log_level="critical", timeout_keep_alive=1, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listening]))
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        begun = time.monotonic()

        async def send() -> None:
            for wait_s, part in parts:
                await asyncio.sleep(wait_s)
                writer.write(part)

        sending = asyncio.create_task(send())
        answer = await asyncio.wait_for(reader.read(), 10)
        took = time.monotonic() - begun
        sending.cancel()
        writer.close()
        server.should_exit = True
        await serving
        return answer, took


HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [(0, HEAD)],
        # A byte now and then does not help.
        [(0.1, bytes([byte])) for byte in HEAD],
        [(0, b"G")],
    ],
)
def test_head_that_does_not_arrive_ends_the_connection(parts):
    answer, took = asyncio.run(exchanged(*parts))
    assert LIMIT_S * 0.9 <= took < 5 * LIMIT_S
    if not parts:
        assert answer == b""
        return
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["code"] == 408


def test_later_request_on_a_connection_has_the_same_deadline():
    answer, took = asyncio.run(exchanged((0, HEAD + b"\r\n"), (0.1, HEAD)))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answer
    assert LIMIT_S < took < 6 * LIMIT_S


def test_slow_response_and_open_connection_are_left_alone():
    """uvicorn's own limit, a second here, ends a connection that is idle after a response."""
    answer, took = asyncio.run(exchanged((0, HEAD.replace(b"/ ", b"/slow ", 1) + b"\r\n")))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"408" not in answer
    assert took > 2 * LIMIT_S + 0.9
