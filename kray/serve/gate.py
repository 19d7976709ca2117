"""ASGI middleware that checks every request before a service handles it: key, media type, size, concurrency.

- Only the head of a request is read before its key is verified; keys are compared by their digests, in constant time, and no
  replica holds the key itself.
- A body larger than the limit is refused before all of it is in memory, whether its length is announced or not.
- No text of a body that reaches a service holds half of a character, which could not be answered in JSON.
- Every refusal is JSON in OpenAI's form, {"error": {"message", "type", "param", "code"}}, and is counted with its reason. So is
  what the service itself fails with, as far as no response has begun, and an attempt to open a web socket.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from kray.text import is_well_formed_json, well_formed_json

logger = logging.getLogger(__name__)

# Path that needs no key and reports only whether the replica works.
HEALTH = "/healthz"
# Seconds for a body to arrive.
BODY_TIMEOUT_S = 30.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_TYPES = {401: "authentication_error", 429: "rate_limit_error", 404: "not_found_error", 409: "conflict_error"}
_SERVER_ERROR = "server_error"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one replica.

    Attributes:
        body_bytes: Largest body of a request, in bytes.
        concurrency: Requests handled at a time; more are refused with 429.
    """

    body_bytes: int = 8 * 2**20
    concurrency: int = 64


class Refusal(Exception):
    """The response to a request that is not carried out."""

    def __init__(
        self, status: int, message: str, reason: str = "invalid", param: str | None = None, retry_after_s: int = 1
    ):
        """Create a refusal.

        Args:
            status: HTTP status.
            message: What is wrong and what to do, for people.
            reason: One of few words, for the counter.
            param: The field of the request that is wrong.
            retry_after_s: Seconds after which to try again, for status 429 and 503.
        """
        super().__init__(message)
        self.status, self.reason, self.param, self.retry_after_s = status, reason, param, retry_after_s

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the response."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else _SERVER_ERROR)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.status}}


class Counts(Protocol):
    """Counters of a gate; kray.serve.meters.Meters implements them."""

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a response."""

    def refused(self, reason: str) -> None:
        """Count a refusal."""


class Gate:
    """The middleware."""

    def __init__(
        self,
        app: Any,
        limits: Limits,
        key_digest: str,
        meters: Counts,
        admit: Callable[[str, str], None] = lambda method, path: None,
    ):
        """Wrap an ASGI application.

        Args:
            app: The application.
            limits: Limits of the replica.
            key_digest: SHA-256 of the key in hexadecimal. "": there is no key, and only requests whose Host header names a
                loopback address pass, so that a web page open in a browser cannot reach the service.
            meters: Counters.
            admit: Called with method and path before the body is read; raises Refusal for what cannot be handled now.
        """
        self.app, self.limits, self.key_digest, self.meters, self.admit = app, limits, key_digest, meters, admit
        self.in_progress = 0

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """Handle one request."""
        if scope["type"] == "websocket":
            return await self._refuse_socket(scope, send)
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == HEALTH:
            return await self.app(scope, receive, send)
        started, status, begun = time.monotonic(), 500, False

        async def watched(message: dict[str, Any]) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
            await send(message)

        self.in_progress += 1
        try:
            body = await self._admit(scope, receive)
            if not is_well_formed_json(body):
                # In a thread: it may take long.
                body = await asyncio.to_thread(well_formed_json, body)
            await self.app(scope, replay(body, receive), watched)
        except Refusal as refusal:
            if begun:
                raise
            await self._refuse(refusal, watched)
        except Exception as error:
            if begun:
                raise
            logger.exception("a request failed")
            what = f"the server failed on this request ({type(error).__name__}); its log says more"
            await self._refuse(Refusal(500, what, "internal"), watched)
        finally:
            self.in_progress -= 1
            route = getattr(scope.get("route"), "path", "none")
            self.meters.answered(route, status, time.monotonic() - started)

    async def _admit(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]]) -> bytes:
        """Return the body of a request that passes; raise Refusal for others."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self._check_head(scope["method"], headers)
        self.admit(scope["method"], scope["path"].removeprefix(scope.get("root_path", "")))
        try:
            return await asyncio.wait_for(self._body(receive, headers), BODY_TIMEOUT_S)
        except TimeoutError:
            raise Refusal(408, f"the request's body did not arrive within {BODY_TIMEOUT_S:.0f} s", "slow") from None

    def _check_head(self, method: str, headers: dict[str, str]) -> None:
        if self.key_digest:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(digest(given.strip()), self.key_digest):
                raise Refusal(401, "the key is missing or wrong: send it as `Authorization: Bearer <key>`", "key")
        elif host_of(headers.get("host", "")) not in LOOPBACK:
            raise Refusal(403, "without a key this server accepts requests to a loopback address only", "host")
        if self.in_progress > self.limits.concurrency:
            limit = self.limits.concurrency
            raise Refusal(429, f"this server handles {limit} requests at a time; try again in a second", "busy")
        media = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method in ("POST", "PUT") and media != "application/json":
            raise Refusal(415, "the body must be JSON: send it as `Content-Type: application/json`", "media")

    async def _body(self, receive: Callable[[], Awaitable[dict[str, Any]]], headers: dict[str, str]) -> bytes:
        most = self.limits.body_bytes
        too_large = Refusal(413, f"the request is larger than {most} bytes, the limit of this server", "size")
        announced = headers.get("content-length", "0")
        if not announced.isdigit() or int(announced) > most:
            raise too_large
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the client disconnected", "gone")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > most:
                raise too_large
        return b"".join(parts)

    async def _refuse(self, refusal: Refusal, send: Callable, form: str = "http.response") -> None:
        """Send a refusal; `form` is the prefix of the types of ASGI's messages."""
        self.meters.refused(refusal.reason)
        body = json.dumps(refusal.body()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if refusal.status in (429, 503):
            headers.append((b"retry-after", str(refusal.retry_after_s).encode()))
        if refusal.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": f"{form}.start", "status": refusal.status, "headers": headers})
        await send({"type": f"{form}.body", "body": body})

    async def _refuse_socket(self, scope: dict[str, Any], send: Callable) -> None:
        """Refuse to open a web socket, whatever its key."""
        started = time.monotonic()
        refusal = Refusal(400, "no service uses web sockets: send plain HTTP requests", "websocket")
        if "websocket.http.response" in (scope.get("extensions") or {}):
            await self._refuse(refusal, send, "websocket.http.response")
        else:
            # The server answers this with 403 and no body.
            self.meters.refused(refusal.reason)
            await send({"type": "websocket.close", "code": 1008, "reason": str(refusal)})
        self.meters.answered("none", refusal.status, time.monotonic() - started)


def replay(body: bytes, receive: Callable[[], Awaitable[dict[str, Any]]]) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Return a `receive` that returns the body again and then what follows it."""
    replayed = False

    async def again() -> dict[str, Any]:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def digest(key: str) -> str:
    """Return the SHA-256 of a key in hexadecimal; keys are long and random, so no slower hash is needed."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def host_of(host: str) -> str:
    """Return the name in a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def health(app: Any, check: Callable[[], Awaitable[None]]) -> None:
    """Add /healthz to a FastAPI application: 200 while `check` raises nothing, else 503."""
    from fastapi.responses import PlainTextResponse

    async def healthz() -> PlainTextResponse:
        try:
            await check()
        except Exception as error:
            return PlainTextResponse(type(error).__name__, 503)
        return PlainTextResponse("ok")

    healthz.__annotations__ = {}
    app.get(HEALTH)(healthz)
