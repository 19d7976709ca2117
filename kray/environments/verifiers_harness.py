"""The harness with which kray plays environments of verifiers: a chat loop with tools, in the session host's process.

Its own harnesses are programs, of which each rollout starts one. Only session hosts import this module; verifiers finds it by
the name HARNESS, which `register` makes known.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import verifiers.v1 as vf
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp

from kray.environments.model_endpoint import CUT

HARNESS = "kray_chat"

__all__ = ["ChatHarness"]


def register() -> None:
    """Let verifiers find the harness by its name."""
    sys.modules[HARNESS] = sys.modules[__name__]


class ChatHarness(vf.Harness[vf.HarnessConfig]):
    """Asks for turns until one calls no tool; runs the tools that a turn calls."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: Any,
        trace: Any,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: Any,
    ) -> Any:
        """Run one segment of the conversation; see verifiers."""
        system, prompt = self.resolve_prompt(data)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages += [message_to_wire(message) for message in prompt or []]
        async with AsyncExitStack() as stack:
            # The policy may take long; the deadlines are kray's.
            http = await stack.enter_async_context(
                aiohttp.ClientSession(
                    headers={"Authorization": f"Bearer {secret}"}, timeout=aiohttp.ClientTimeout(total=None)
                )
            )
            servers = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
            tools, routes, open_servers = await connect_mcp({"mcpServers": servers}, stack) if servers else ([], {}, {})
            hidden = self.config.disabled_tools or ()
            tools = [tool for tool in tools if tool["function"]["name"] not in hidden]
            routes = {name: route for name, route in routes.items() if name not in hidden}
            body: dict[str, Any] = {"model": ctx.model, "messages": messages, **({"tools": tools} if tools else {})}
            while True:
                async with http.post(f"{endpoint}/chat/completions", json=body) as reply:
                    text = await reply.text()
                if reply.status != 200:
                    # The end of a conversation without room for more is no failure.
                    return vf.ProgramResult(exit_code=0 if CUT in text else 1, stdout="", stderr=text)
                message = json.loads(text)["choices"][0]["message"]
                messages.append({key: value for key, value in message.items() if value is not None})
                if not (calls := message.get("tool_calls")):
                    return vf.ProgramResult(exit_code=0, stdout="", stderr="")
                for call in calls:
                    content = await _result(call["function"], routes, open_servers)
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})


async def _result(function: dict[str, str], routes: dict[str, Any], servers: dict[str, Any]) -> Any:
    """Return the result of a call, or why there is none."""
    name = function["name"]
    if name not in routes:
        return f"error: no tool {name!r:.60}; there are {', '.join(routes)}"
    try:
        return await call_mcp(servers, routes, name, json.loads(function["arguments"]))
    except asyncio.CancelledError:
        raise
    except Exception as error:
        return f"error: {type(error).__name__}: {error}"
