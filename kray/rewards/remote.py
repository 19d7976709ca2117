"""Rewards from a service (jobs/serve.py rewards), by the interface of the Scorer: where judging outgrows the driver's node.

Every answer that `score` takes gets exactly one outcome, in the order given, as from the Scorer. What happens to a request
- the service is away, busy or fails (no connection, 404, 408, 429, 5xx): sent again after a pause that doubles, until
  `deadline_s` has passed since the first attempt; then reward None with an error, a data failure;
- it is too large (413): sent again in halves; one answer alone that is too large is a data failure;
- it is refused for what it says (400, 422): a data failure of its answers, never sent again;
- the key is refused (401, 403): KrayError, since no answer would ever be judged.
Single-loop: `score` may be awaited many times at once on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
from collections.abc import Iterable
from typing import Any

from kray.rewards.scorer import Outcome

CHUNK_ITEMS = 64
CHUNK_CHARACTERS = 1_000_000
AT_ONCE = 16  # requests under way
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
_AGAIN = (404, 408, 425, 429, 500, 502, 503, 504)  # 404: the service is being put up or taken down

Item = tuple[str, str, str]  # verifier or "", response, answer


class RemoteScorer:
    """url: of the service, without /v1/score. key: "" for none. options: of verifier_default. deadline_s: for one request,
    all its attempts together. Counters as the Scorer's; restarts stays 0, retries counts requests sent again."""

    def __init__(
        self,
        url: str,
        key: str,
        verifier_default: str,
        options: dict[str, Any] | None = None,
        deadline_s: float = 300.0,
    ) -> None:
        self.url = url.rstrip("/") + "/v1/score"
        self._key = key
        self.verifier_default = verifier_default
        self.options = dict(options or {})
        self.deadline_s = deadline_s
        self.timeouts = self.failures = self.restarts = self.retries = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Any = None
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._closed = False

    async def score(self, items: Iterable[Item]) -> list[Outcome]:
        """Outcomes of (verifier or "", response, answer), in their order. Raises KrayError when the key is refused."""
        if self._closed:
            raise _error("is closed")
        self._open()
        asked = [asyncio.create_task(self._judge(chunk)) for chunk in chunks(list(items))]
        try:
            parts = await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()
        outcomes = [outcome for part in parts for outcome in part]
        self.timeouts += sum(outcome.timed_out for outcome in outcomes)
        self.failures += sum(outcome.reward is None for outcome in outcomes)
        return outcomes

    async def score_one(self, verifier: str, response: str, answer: str) -> Outcome:
        """The outcome of one answer."""
        return (await self.score([(verifier, response, answer)]))[0]

    def close(self) -> None:
        """May be called twice, from any thread."""
        self._closed = True
        loop, session, self._session = self._loop, self._session, None
        if loop is not None and session is not None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                asyncio.run_coroutine_threadsafe(session.close(), loop)

    def _open(self) -> None:
        import aiohttp

        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._loop, self._slots = loop, asyncio.Semaphore(AT_ONCE)
        self._session = aiohttp.ClientSession(headers=headers)

    async def _judge(self, items: list[Item]) -> list[Outcome]:
        """The outcomes of one request, however often it is sent."""
        body = {
            "verifier": self.verifier_default,
            "options": self.options,
            "items": [{"verifier": verifier, "response": given, "answer": answer} for verifier, given, answer in items],
        }
        deadline = asyncio.get_running_loop().time() + self.deadline_s
        pause = FIRST_PAUSE_S
        while True:
            left = deadline - asyncio.get_running_loop().time()
            async with self._slots:
                status, told = await self._send(body, max(0.01, left))
            if status == 200:
                return _outcomes(told, len(items))
            if status in (401, 403):
                raise _error(f"{self.url} refuses the key: {told}")
            if status == 413 and len(items) > 1:
                half = len(items) // 2
                return await self._judge(items[:half]) + await self._judge(items[half:])
            if status and status not in _AGAIN:
                return _failed(len(items), f"the reward service refused the request ({status}): {told}")
            wait_s = pause * random.uniform(0.5, 1.0)  # many clients must not come back at once
            if asyncio.get_running_loop().time() + wait_s >= deadline:
                text = f"the reward service gave no answer within {self.deadline_s:g} s; last: {told}"
                return _failed(len(items), text)
            self.retries += 1
            await asyncio.sleep(wait_s)
            pause = min(LONGEST_PAUSE_S, 2 * pause)

    async def _send(self, body: dict[str, Any], timeout_s: float) -> tuple[int, Any]:
        """(status, the answer or what it says); status 0: there was none."""
        import aiohttp

        limit = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.post(self.url, json=body, timeout=limit, allow_redirects=False) as answer:
                text = await answer.text()
                if answer.status != 200:
                    return answer.status, _message(text)
                return 200, json.loads(text)
        except TimeoutError:
            return 0, f"no answer after {timeout_s:.1f} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return 0, f"{type(error).__name__}: {error}"


def chunks(items: list[Item]) -> list[list[Item]]:
    """Consecutive parts, each of at most CHUNK_ITEMS answers and, unless it is one answer, CHUNK_CHARACTERS."""
    parts: list[list[Item]] = []
    characters = 0
    for item in items:
        size = len(item[1]) + len(item[2])
        if not parts or len(parts[-1]) >= CHUNK_ITEMS or characters + size > CHUNK_CHARACTERS:
            parts.append([])
            characters = 0
        parts[-1].append(item)
        characters += size
    return parts


def _outcomes(told: Any, wanted: int) -> list[Outcome]:
    try:
        outcomes = [Outcome(**outcome) for outcome in told["outcomes"]]
        sound = all(outcome.reward is None or math.isfinite(outcome.reward) for outcome in outcomes)
    except (TypeError, KeyError) as error:
        return _failed(wanted, f"the reward service's answer cannot be read: {error}")
    if not sound:
        return _failed(wanted, "the reward service gave a reward that is not finite")
    if len(outcomes) != wanted:
        return _failed(wanted, f"the reward service gave {len(outcomes)} outcomes for {wanted} answers")
    return outcomes


def _failed(wanted: int, error: str) -> list[Outcome]:
    return [Outcome(None, error=error)] * wanted


def _message(text: str) -> str:
    """What an error says, in one line."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())[:300]


def _error(what: str) -> Exception:
    from kray.errors import KrayError

    return KrayError(f"reward service: {what}")
