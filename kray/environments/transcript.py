"""The messages of one conversation with an environment that asks for the policy's turns as a chat API.

Such an environment sends the whole conversation with each request. kray's conversation is tokens that grow at their end, so
what a request holds must begin with what the policy has read and written; only what follows is new to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


class TranscriptError(ValueError):
    """A request does not continue the conversation."""


class Transcript:
    """What the policy has read and written, as messages."""

    def __init__(self, prompt: Sequence[Mapping[str, str]]):
        """Begin with a prompt.

        Args:
            prompt: Its messages as the policy has read them; the system message may be longer than the environment's, by
                the description of tools.
        """
        self._system = "\n\n".join(m["content"] for m in prompt if m["role"] == "system")
        self._known = [_normal(message) for message in prompt if message["role"] != "system"]
        self._asked = self._answered = False
        self._calls = 0

    def advance(self, request: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], ...]:
        """Return the messages that are new to the policy.

        Args:
            request: All messages of a request.

        Returns:
            The new ones, with role and content as text; none at the beginning, when the prompt is all.

        Raises:
            TranscriptError: The request does not begin with what the policy has read and written, or holds what it cannot
                read.
        """
        messages = [_normal(message) for message in request]
        lead = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
        system = "\n\n".join(message["content"] for message in messages[:lead])
        if not self._system.startswith(system):
            raise TranscriptError(f"the environment's system message is not the prompt's but {system!r:.200}")
        rest, known = messages[lead:], self._known
        for number, message in enumerate(known):
            if number >= len(rest) or rest[number] != message:
                found = rest[number] if number < len(rest) else None
                raise TranscriptError(
                    "the environment does not continue the conversation: kray trains on one that grows at its end, but "
                    f"message {number + 1} was {_shown(message)} and is {_shown(found)}"
                )
        new = rest[len(known) :]
        if self._asked and not (self._answered and new):
            raise TranscriptError("the environment asked for a turn of the policy twice, with nothing new in between")
        if own := next((message for message in new if message["role"] == "assistant"), None):
            raise TranscriptError(f"the environment added a turn that the policy did not write: {_shown(own)}")
        self._known, self._asked, self._answered = rest, True, False
        return tuple({"role": message["role"], "content": message["content"]} for message in new)

    def answer(self, turn: str, tools: Sequence[str]) -> dict[str, Any]:
        """Return a turn of the policy as an assistant message.

        Args:
            turn: Its text. Calls of tools are written as <tool_call>{"name": ..., "arguments": {...}}</tool_call>.
            tools: Names of the request's tools; without any, calls are text.
        """
        calls = _calls(turn, self._calls) if tools else []
        self._calls += len(calls)
        message: dict[str, Any] = {"role": "assistant", "content": turn}
        if calls:
            message = {"role": "assistant", "content": _CALL.sub("", turn).strip(), "tool_calls": calls}
        self._known = [*self._known, _normal(message)]
        self._answered = True
        return message


def _calls(turn: str, before: int) -> list[dict[str, Any]]:
    """Return the calls of a turn in OpenAI's form; what cannot be read as one is none."""
    found: list[dict[str, Any]] = []
    for text in _CALL.findall(turn):
        try:
            call = json.loads(text)
            name, arguments = call["name"], call.get("arguments") or {}
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if isinstance(name, str) and isinstance(arguments, dict):
            function = {"name": name, "arguments": json.dumps(arguments)}
            found.append({"id": f"call_{before + len(found)}", "type": "function", "function": function})
    return found


def _normal(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two messages must share to be the same."""
    role = str(message.get("role"))
    normal: dict[str, Any] = {"role": role, "content": _text(message.get("content"))}
    if calls := message.get("tool_calls"):
        normal["calls"] = [_call(call.get("function") or {}) for call in calls]
    if role == "assistant":
        normal["content"] = normal["content"].strip()
    return normal


def _call(function: Mapping[str, Any]) -> tuple[Any, Any]:
    try:
        return function.get("name"), json.loads(function.get("arguments") or "{}")
    except ValueError:
        return function.get("name"), function.get("arguments")


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise TranscriptError(f"a message holds more than text: {part!r:.80}")
        texts.append(str(part.get("text") or ""))
    return "\n".join(texts)


def _shown(message: Mapping[str, Any] | None) -> str:
    return "missing" if message is None else f"{message['role']} {message['content']!r:.120}"
