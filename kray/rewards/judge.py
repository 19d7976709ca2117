"""Client of a judge: a model behind an OpenAI-compatible endpoint that says what a response is worth (reward.judge).

Every response passed to `score` gets exactly one outcome, in the given order:
- a reward, read from the judge's reply (judge_text.py);
- reward None with an error, a data failure: the reply holds no verdict, the endpoint refuses the request (400, 404, 413, 422),
  or there was no reply until `deadline_s`. What may pass (no connection, 408, 409, 425, 429, 5xx) is tried again until then,
  after pauses that double or that the endpoint asks for. A chat completion is final, whatever it says.
A refused key (401, 403) raises KrayError, since no response would ever be scored. The key is sent as a header and taken out of
every text that comes back.

For one event loop at a time, on which any number of calls of `score` may wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kray.errors import ConfigError, KrayError
from kray.reward_settings import JudgeConfig
from kray.rewards.judge_text import BROKEN_UP, judge_request, read_verdict
from kray.rewards.scorer import Outcome
from kray.rewards.signatures import Sample

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 20.0
_RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
# Tokens of one reply beyond which an endpoint's count is not believed.
_MOST_TOKENS = 10**9
_ERROR_CHARACTERS = 300


@dataclass(slots=True)
class JudgeUsage:
    """What judges were asked for.

    Attributes:
        requests: Requests that were sent, repeated ones included.
        retries: Those that repeated another.
        failures: Responses without a verdict.
        prompt_tokens: Tokens of the requests, as the endpoint counts them.
        completion_tokens: Tokens of the replies.
        cost: Of these tokens, by the prices of reward.judge.
    """

    requests: int = 0
    retries: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Judge:
    """Scores responses by asking a model.

    Attributes:
        settings: The judge.
        usage: What was asked for; several judges may count in one.
    """

    def __init__(self, settings: JudgeConfig, key: str, usage: JudgeUsage):
        """Create the client; connections open when first needed.

        Args:
            settings: The judge.
            key: The API key, "" for none.
            usage: Is counted up.
        """
        self.settings, self.usage, self._key = settings, usage, key
        self._url = settings.url.rstrip("/") + "/chat/completions"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Any = None
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._closed = False

    async def score(self, items: Sequence[tuple[str, Sample]]) -> list[Outcome]:
        """Score responses.

        Args:
            items: (response, its sample) each.

        Returns:
            Their outcomes, in the same order.

        Raises:
            KrayError: The endpoint refuses the key, or this client is closed.
        """
        if self._closed:
            raise KrayError("judge: is closed")
        self._open()
        requests = [asyncio.create_task(self._judge(response, sample)) for response, sample in items]
        try:
            outcomes = await asyncio.gather(*requests)
        finally:
            for request in requests:
                request.cancel()
        self.usage.failures += sum(outcome.reward is None for outcome in outcomes)
        return outcomes

    def close(self) -> None:
        """Close the connections. Can be called twice, and from any thread."""
        self._closed = True
        loop, session, self._session = self._loop, self._session, None
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
        self._loop, self._slots = loop, asyncio.Semaphore(self.settings.concurrency)
        self._session = aiohttp.ClientSession(headers=headers)

    async def _judge(self, response: str, sample: Sample) -> Outcome:
        """Return the outcome of one response."""
        started = time.monotonic()
        try:
            body, changed = judge_request(self.settings, sample.prompt, response)
            reply, cut = _reply(await self._ask(body))
        except ValueError as error:
            return Outcome(None, error=str(error), elapsed_s=time.monotonic() - started)
        elapsed_s = time.monotonic() - started
        try:
            verdict = read_verdict(self.settings, reply)
        except ValueError as error:
            why = f"{error}; it was cut at max_tokens {self.settings.max_tokens}" if cut else str(error)
            return Outcome(None, error=why, elapsed_s=elapsed_s)
        detail = f"{BROKEN_UP}; {verdict.detail}" if changed else verdict.detail
        return Outcome(verdict.value, detail, elapsed_s=elapsed_s)

    async def _ask(self, body: dict[str, Any]) -> Any:
        """Return the decoded reply to one request, which is sent as often as needed.

        Raises:
            KrayError: The endpoint refuses the key.
            ValueError: There is no reply; the message says why.
        """
        clock = asyncio.get_running_loop().time
        deadline, pause, attempts = clock() + self.settings.deadline_s, FIRST_PAUSE_S, 0
        last = f"all of its {self.settings.concurrency} requests at a time (concurrency) were taken"
        while True:
            try:
                async with asyncio.timeout_at(deadline), self._slots:
                    self.usage.requests += 1
                    self.usage.retries += attempts > 0
                    attempts += 1
                    status, reply, asked_s = await self._send(body)
            except TimeoutError:
                raise ValueError(self._late(attempts, last)) from None
            if status == 200:
                self._count(reply)
                return reply
            if status in (401, 403):
                raise KrayError(f"judge: {self._url} refuses the key of reward.judge.key_env: {reply}")
            if status and status not in _RETRIED:
                raise ValueError(f"the judge refused the request ({status}): {reply}")
            last = f"{status}: {reply}" if status else reply
            # Jitter, so that many requests do not return at once.
            wait_s = max(asked_s, pause * random.uniform(0.5, 1.0))
            if clock() + wait_s >= deadline:
                raise ValueError(self._late(attempts, last))
            await asyncio.sleep(wait_s)
            pause = min(LONGEST_PAUSE_S, 2 * pause)

    def _late(self, attempts: int, last: str) -> str:
        tries = f"{attempts} attempt{'s' if attempts != 1 else ''}"
        return f"the judge gave no verdict within {self.settings.deadline_s:g} s ({tries}; last: {last})"

    async def _send(self, body: dict[str, Any]) -> tuple[int, Any, float]:
        """Return (HTTP status, the decoded reply or an error's message, seconds to wait); status 0: there was no reply."""
        import aiohttp

        # The whole request has a deadline in _ask.
        limit = aiohttp.ClientTimeout(total=None)
        try:
            async with self._session.post(self._url, json=body, timeout=limit, allow_redirects=False) as reply:
                # Without the key before it is cut, which could leave a part of it.
                text = self._shown(await reply.text())
                if reply.status != 200:
                    return reply.status, _message(text), _seconds(reply.headers.get("Retry-After", ""))
                return 200, json.loads(text), 0.0
        # RecursionError: JSON that is nested too deeply.
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            return 0, self._shown(f"{type(error).__name__}: {error}")[:_ERROR_CHARACTERS], 0.0

    def _count(self, reply: Any) -> None:
        """Add the tokens of a reply to the usage; endpoints may leave them out."""
        given = reply.get("usage") if isinstance(reply, dict) else None
        known = given if isinstance(given, dict) else {}
        tokens = [known.get(name) for name in ("prompt_tokens", "completion_tokens")]
        asked, said = (number if isinstance(number, int) and 0 < number < _MOST_TOKENS else 0 for number in tokens)
        self.usage.prompt_tokens += asked
        self.usage.completion_tokens += said
        prices = self.settings.prompt_price, self.settings.completion_price
        self.usage.cost += (asked * prices[0] + said * prices[1]) / 1e6

    def _shown(self, text: Any) -> str:
        """Return a text without the key."""
        return str(text).replace(self._key, "***") if self._key else str(text)


def api_key(settings: JudgeConfig) -> str:
    """Return the judge's API key, "" where none is sent.

    Raises:
        ConfigError: Its environment variable is not set.
    """
    key = os.environ.get(settings.key_env, "").strip() if settings.key_env else ""
    if settings.key_env and not key:
        raise ConfigError(f"reward.judge.key_env: the environment variable {settings.key_env} is not set")
    return key


def _reply(reply: Any) -> tuple[str, bool]:
    """Return the text of a chat completion, and whether it was cut.

    Raises:
        ValueError: It holds no text.
    """
    try:
        choice = reply["choices"][0]
        text = choice["message"]["content"]
    except (TypeError, KeyError, IndexError):
        raise ValueError(f"the judge's reply is no chat completion: {str(reply)[:_ERROR_CHARACTERS]}") from None
    if not isinstance(text, str):
        raise ValueError(f"the judge's reply holds no text (finish_reason {choice.get('finish_reason')!r:.40})")
    return text, choice.get("finish_reason") == "length"


def _message(text: str) -> str:
    """Return the message of an error reply, in one line."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())[:_ERROR_CHARACTERS]


def _seconds(text: str) -> float:
    """Return the seconds of a Retry-After header; 0 for none and for a date."""
    try:
        found = float(text)
    except ValueError:
        return 0.0
    return found if math.isfinite(found) and found > 0 else 0.0
