"""An opponent behind an OpenAI-compatible server.

Every turn gets a text, or raises within the deadline:
- no connection, time-outs and the statuses of RETRIED are sent again after a pause that doubles, until the deadline has passed
  since the first attempt; then the turn is a data failure (DataError), and so is one that the server refuses;
- a refused key (401, 403) raises KrayError, since no turn would ever be answered.

For one event loop at a time, on which any number of turns may wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from kray.config.players import EndpointConfig
from kray.errors import DataError, KrayError

# Requests in flight at once.
MAX_CONCURRENT = 16
# Seconds before the second attempt, and most between two attempts.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
# HTTP statuses that are worth another attempt; 404: the service is being deployed.
RETRIED = (404, 408, 425, 429, 500, 502, 503, 504)
# Characters of an error reply that are kept.
REPLY_CHARACTERS = 300


class EndpointPlayer:
    """Plays turns by requests to a server.

    Attributes:
        endpoint: The server and how it samples.
        retries: Requests that were sent again.
    """

    def __init__(self, endpoint: EndpointConfig, key: str, stops: Sequence[str] = ()):
        """Create the player; connections open when first needed.

        Args:
            endpoint: The server.
            key: "" for none.
            stops: Texts after which a turn is cut, as the policy's own turns are.
        """
        self.endpoint, self._key, self._stops = endpoint, key, tuple(stops)
        self.retries = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Any = None
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def play(self, messages: Sequence[Mapping[str, str]], seed: int) -> str:
        """Return the text of the next turn.

        Args:
            messages: The role's view: its own turns are those of the assistant. The completions API gets their contents
                joined as one text.
            seed: Of this turn, sent with the request.

        Raises:
            DataError: The server refuses the request, or gives no text within the deadline.
            KrayError: The server refuses the key.
        """
        self._open()
        endpoint = self.endpoint
        body: dict[str, Any] = {
            "model": endpoint.model,
            "max_tokens": endpoint.max_tokens,
            "temperature": endpoint.temperature,
            # Servers take a 32-bit integer.
            "seed": seed % 2**31,
        }
        if endpoint.api == "chat":
            body["messages"] = [dict(message) for message in messages]
        else:
            body["prompt"] = "".join(message["content"] for message in messages)
        clock = asyncio.get_running_loop().time
        deadline, pause = clock() + endpoint.deadline_s, FIRST_PAUSE_S
        while True:
            async with self._slots:
                status, reply = await self._send(body, max(0.01, deadline - clock()))
            if status == 200:
                return self._text(reply)
            if status in (401, 403):
                raise KrayError(f"opponent {endpoint.url} refuses the key of {endpoint.key_env}: {reply}")
            if status and status not in RETRIED:
                raise DataError(f"opponent {endpoint.model} refused the request ({status}): {reply}")
            # Jitter, so that many episodes do not return at once.
            wait_s = pause * random.uniform(0.5, 1.0)
            if clock() + wait_s >= deadline:
                raise DataError(
                    f"opponent {endpoint.model} gave no turn within {endpoint.deadline_s:g} s; last: {reply}"
                )
            self.retries += 1
            await asyncio.sleep(wait_s)
            pause = min(LONGEST_PAUSE_S, 2 * pause)

    def close(self) -> None:
        """Close the connections. Can be called twice, and from any thread."""
        loop, session, self._session, self._loop = self._loop, self._session, None, None
        if loop is not None and session is not None:
            # Raised when the event loop is closed.
            with contextlib.suppress(RuntimeError):
                asyncio.run_coroutine_threadsafe(session.close(), loop)

    def _open(self) -> None:
        import aiohttp

        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._loop, self._slots = loop, asyncio.Semaphore(MAX_CONCURRENT)
        self._session = aiohttp.ClientSession(headers=headers)

    async def _send(self, body: Mapping[str, Any], timeout_s: float) -> tuple[int, Any]:
        """Return (200, reply), (status, reason) or (0, reason) where there was no answer."""
        import aiohttp

        path = "chat/completions" if self.endpoint.api == "chat" else "completions"
        limit = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.post(
                f"{self.endpoint.url.rstrip('/')}/{path}", json=body, timeout=limit
            ) as response:
                text = await response.text()
                return response.status, json.loads(text) if response.status == 200 else _message(text)
        except TimeoutError:
            return 0, f"no answer after {timeout_s:.1f} s"
        # RecursionError: JSON that is nested too deeply.
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            return 0, f"{type(error).__name__}: {error}"

    def _text(self, reply: Any) -> str:
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] if self.endpoint.api == "chat" else choice["text"]
        except (TypeError, LookupError):
            raise DataError(
                f"opponent {self.endpoint.model}: its reply holds no turn: {str(reply)[:REPLY_CHARACTERS]}"
            ) from None
        # A turn without text is null in some servers' replies.
        text = text or ""
        if not isinstance(text, str):
            raise DataError(f"opponent {self.endpoint.model}: its turn is {type(text).__name__}, not text")
        ends = [text.index(stop) + len(stop) for stop in self._stops if stop in text]
        return text[: min(ends)] if ends else text


def _message(text: str) -> str:
    """Return the message of an error reply, in one line."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())[:REPLY_CHARACTERS]
