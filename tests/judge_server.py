"""A server that speaks OpenAI's chat protocol and replies as a test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

# Gets the body of a request and its number, from 1; returns the reply's text, or a whole response.
Reply = Callable[[dict[str, Any], int], Any]


@dataclass
class JudgeServer:
    """The server: its address, the requests that it got, and how many it worked on at a time."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    working: int = 0
    most: int = 0


@contextlib.asynccontextmanager
async def judge_server(reply: Reply) -> AsyncIterator[JudgeServer]:
    """Serve on 127.0.0.1 until the block ends."""
    server = JudgeServer()

    async def complete(request: web.Request) -> web.StreamResponse:
        server.bodies.append(await request.json())
        server.keys.append(request.headers.get("Authorization", ""))
        server.working += 1
        server.most = max(server.most, server.working)
        try:
            found = reply(server.bodies[-1], len(server.bodies))
            found = await found if asyncio.iscoroutine(found) else found
        finally:
            server.working -= 1
        return found if isinstance(found, web.StreamResponse) else completion(found)

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


def completion(text: str | None, finish: str = "stop", usage: Any = (100, 20)) -> web.Response:
    """Return a chat completion."""
    message = {"role": "assistant", "content": text}
    body: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    if usage is not None:
        body["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
    return web.json_response(body)


def error(status: int, message: str = "", **headers: str) -> web.Response:
    """Return an error as OpenAI's API has it."""
    body = {"error": {"message": message or f"status {status}", "type": "error", "code": status}}
    return web.json_response(body, status=status, headers={name.replace("_", "-"): v for name, v in headers.items()})
