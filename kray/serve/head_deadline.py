"""A deadline for the head of every request, in the process of Ray Serve's HTTP proxy, which calls `install` (deploy.py).

uvicorn, which Serve's proxy runs, waits without end for a connection that sends half a head, or nothing. A body that does not
arrive is refused by kray.serve.gate.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kray.serve.gate import Refusal

# Seconds for the whole head, from the connection or from the first byte of a later request on it.
HEAD_TIMEOUT_S = 10.0


def install() -> list[Any]:
    """Have the servers that this process starts from now on use HeadDeadline; return no middleware."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{HeadDeadline.__name__}"
    return []


class HeadDeadline(HttpToolsProtocol):
    """A connection that is closed when the head of a request does not arrive in time."""

    head_timeout_s = HEAD_TIMEOUT_S
    _timer: asyncio.TimerHandle | None = None
    _begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first request."""
        super().connection_made(transport)
        self._start_timer()

    def on_message_begin(self) -> None:
        """Start the deadline of a request whose first byte has arrived; that of the first one runs already."""
        super().on_message_begin()
        self._begun = True
        self._start_timer()

    def on_headers_complete(self) -> None:
        """End the deadline."""
        self._stop_timer()
        self._begun = False
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the deadline."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_timeout_s, self._refuse)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self) -> None:
        """Close the connection; say why where a request has begun and no response to an earlier one is under way."""
        self._timer = None
        if self._begun and (self.cycle is None or self.cycle.response_complete):
            refusal = Refusal(408, f"the request's head did not arrive within {self.head_timeout_s:g} s", "slow")
            body = json.dumps(refusal.body()).encode()
            head = "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()
