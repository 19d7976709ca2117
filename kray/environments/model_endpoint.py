"""A chat API on 127.0.0.1 behind which the policy's turns are: environments ask, their sessions answer.

Requests are told apart by the header X-Session-ID and by a key that only this process knows.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from typing import Any

from aiohttp import web

# The code of the error that ends a conversation which has no room for another turn, as model providers send it.
CUT = "context_length_exceeded"
_MAX_BODY_BYTES = 64 * 2**20


class Call:
    """A request for a turn of the policy.

    Attributes:
        messages: All messages of the conversation.
        tools: Names of the tools that the policy may call.
    """

    def __init__(self, body: Mapping[str, Any]):
        self.messages: list[Mapping[str, Any]] = list(body.get("messages") or [])
        self.tools = [tool["function"]["name"] for tool in body.get("tools") or [] if tool.get("type") == "function"]
        self._answer: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()

    def answer(self, message: dict[str, Any] | None) -> None:
        """Answer with an assistant message; None: the conversation has no room for another turn."""
        if not self._answer.done():
            self._answer.set_result(message)

    async def wait(self) -> dict[str, Any] | None:
        """Return the answer."""
        return await self._answer


class ModelEndpoint:
    """The server.

    Attributes:
        url: Its address, with /v1.
        key: Its key.
    """

    def __init__(self) -> None:
        self.url = ""
        self.key = secrets.token_urlsafe(16)
        self._queues: dict[str, asyncio.Queue[Call]] = {}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    def register(self, session: str, queue: asyncio.Queue[Call]) -> None:
        """Put the calls of a session into this queue."""
        self._queues[session] = queue

    def forget(self, session: str) -> None:
        """Refuse further calls of a session."""
        self._queues.pop(session, None)

    async def close(self) -> None:
        """End the server."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, "invalid_api_key", "no valid key")
        body = await request.json()
        queue = self._queues.get(request.headers.get("X-Session-ID", ""))
        if queue is None:
            return _error(404, "unknown_session", "the rollout has ended")
        queue.put_nowait(call := Call(body))
        message = await call.wait()
        if message is None:
            return _error(400, CUT, f"{CUT}: the conversation has no room for another turn")
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        head = {"id": "kray", "created": 0, "model": str(body.get("model"))}
        if body.get("stream"):
            calls = [{**each, "index": i} for i, each in enumerate(message.get("tool_calls", ()))]
            delta = {**message, "tool_calls": calls} if calls else message
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            chunk = json.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]})
            return web.Response(text=f"data: {chunk}\n\ndata: [DONE]\n\n", content_type="text/event-stream")
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return web.json_response({**head, "object": "chat.completion", "choices": [choice]})


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "kray", "code": code}}, status=status)
