"""Client of the reward service (jobs/serve.py rewards) with the Scorer's interface, for scoring beyond the driver's node.

Every answer passed to `score` gets exactly one outcome, in the given order, as from the Scorer. A request

- that fails because the service is unreachable, busy or failing (no connection, 404, 408, 425, 429, 5xx) is sent again
  after a pause that doubles, until `deadline_s` has passed since the first attempt; then its answers get reward None with
  an error, a data failure;
- that is too large (413) is sent again in halves; one answer that is too large by itself is a data failure;
- that is refused for one of its answers (400, 422 whose `param` is among the items) is sent again in halves, so that only this
  answer is a data failure; one that is refused for another reason is a data failure of all of its answers;
- whose key is refused (401, 403) raises KrayError, since no answer would ever be scored.

For one event loop at a time, on which any number of calls of `score` may wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
from collections.abc import Iterable, Mapping
from typing import Any

from kray.reward_settings import read_range
from kray.rewards.outcome import Outcome, Ranges
from kray.rewards.signatures import Sample
from kray.text import brief, describe, one_line

# Answers, and characters of responses and right answers, in one request.
CHUNK_ITEMS = 64
CHUNK_CHARACTERS = 1_000_000
# Requests in flight at once.
MAX_CONCURRENT = 16
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
# HTTP statuses that are worth another attempt; 404: the service is being deployed or removed.
_RETRIED = (404, 408, 425, 429, 500, 502, 503, 504)

_ERROR_CHARACTERS = 300

# Verifier or "", response, right answer or Sample.
Item = tuple[str, str, Any]


class RemoteScorer:
    """Scores answers by requests to a reward service.

    Attributes:
        timeouts: Answers that exceeded the service's deadline.
        failures: Data failures.
        restarts: Always 0; the Scorer counts processes here.
        retries: Requests that were sent again.
    """

    def __init__(
        self,
        url: str,
        key: str,
        verifier_default: str,
        options: dict[str, Any] | None = None,
        deadline_s: float = 300.0,
        named: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
        ranges: Ranges | None = None,
    ) -> None:
        """Create the client; connections open when first needed.

        Args:
            url: Of the service, without /v1/score.
            key: "" for none.
            verifier_default: Verifier of items that name none.
            options: Keyword arguments of the default verifier.
            deadline_s: Seconds for one request with all its attempts.
            named: Name -> (verifier, its keyword arguments) of further names that items may have as their verifier.
            ranges: Which values are rewards; None: rewards are the values as verifiers give them.
        """
        self.url = url.rstrip("/") + "/v1/score"
        self._key = key
        self.verifier_default = verifier_default
        self.options = dict(options or {})
        self.named = {name: (verifier, dict(given)) for name, (verifier, given) in (named or {}).items()}
        self.deadline_s, self.ranges = deadline_s, ranges
        self.timeouts = self.failures = self.restarts = self.retries = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Any = None
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._closed = False

    async def score(self, items: Iterable[Item]) -> list[Outcome]:
        """Score answers.

        Args:
            items: (verifier or "", response, answer or Sample) each.

        Returns:
            Their outcomes, in the same order.

        Raises:
            KrayError: The service refuses the key, or this client is closed.
        """
        if self._closed:
            raise _error("is closed")
        self._open()
        # A request has one default verifier with its options: items of each name go into requests of their own.
        items = list(items)
        grouped: dict[str, list[tuple[int, Item]]] = {}
        for index, item in enumerate(items):
            grouped.setdefault(item[0] if item[0] in self.named else "", []).append((index, item))
        parts = [(name, part) for name, group in grouped.items() for part in chunks([item for _, item in group])]
        requests = [asyncio.create_task(self._request(part, name)) for name, part in parts]
        try:
            answered = await asyncio.gather(*requests)
        finally:
            for request in requests:
                request.cancel()
        indices = [index for group in grouped.values() for index, _ in group]
        found = dict(zip(indices, (outcome for part in answered for outcome in part), strict=True))
        outcomes = [found[index] for index in range(len(found))]
        if self.ranges is not None:
            outcomes = self.ranges.apply_all([verifier for verifier, _, _ in items], outcomes, self.named)
        self.timeouts += sum(outcome.timed_out for outcome in outcomes)
        self.failures += sum(outcome.reward is None for outcome in outcomes)
        return outcomes

    async def score_one(self, verifier: str, response: str, answer: Any) -> Outcome:
        """Score one answer; see `score`."""
        return (await self.score([(verifier, response, answer)]))[0]

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
        self._loop, self._slots = loop, asyncio.Semaphore(MAX_CONCURRENT)
        self._session = aiohttp.ClientSession(headers=headers)

    async def _request(self, items: list[Item], name: str = "") -> list[Outcome]:
        """Return the outcomes of items that have the same name of `named`; those that cannot be written are not sent."""
        written = [_written("" if name else verifier, given, subject) for verifier, given, subject in items]
        sent = [each for each in written if not isinstance(each, Outcome)]
        answered = iter(await self._answered(sent, name) if sent else [])
        return [each if isinstance(each, Outcome) else next(answered) for each in written]

    async def _answered(self, written: list[dict[str, Any]], name: str) -> list[Outcome]:
        """Return the outcomes of one request, sent as often as needed."""
        default, options = self.named.get(name, (self.verifier_default, self.options))
        body = {"verifier": default, "options": options, "items": written}
        deadline = asyncio.get_running_loop().time() + self.deadline_s
        pause = FIRST_PAUSE_S
        while True:
            left = deadline - asyncio.get_running_loop().time()
            async with self._slots:
                status, reply, place = await self._send(body, max(0.01, left))
            if status == 200:
                return _outcomes(reply, len(written))
            if status in (401, 403):
                raise _error(f"{self.url} refuses the key: {reply}")
            if len(written) > 1 and (status == 413 or (status in (400, 422) and place.startswith("items"))):
                half = len(written) // 2
                return await self._answered(written[:half], name) + await self._answered(written[half:], name)
            if status and status not in _RETRIED:
                return _failed(len(written), f"the reward service refused the request ({status}): {reply}")
            # Jitter, so that many clients do not return at once.
            wait_s = pause * random.uniform(0.5, 1.0)
            if asyncio.get_running_loop().time() + wait_s >= deadline:
                text = f"the reward service gave no answer within {self.deadline_s:g} s; last: {reply}"
                return _failed(len(written), text)
            self.retries += 1
            await asyncio.sleep(wait_s)
            pause = min(LONGEST_PAUSE_S, 2 * pause)

    async def _send(self, body: dict[str, Any], timeout_s: float) -> tuple[int, Any, str]:
        """Return (HTTP status, the decoded reply or the error's message, the field at fault); status 0: there was no reply."""
        import aiohttp

        limit = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.post(self.url, json=body, timeout=limit, allow_redirects=False) as reply:
                text = await reply.text()
                if reply.status != 200:
                    return reply.status, *_refusal(text)
                return 200, json.loads(text), ""
        except TimeoutError:
            return 0, f"no answer after {timeout_s:.1f} s", ""
        # RecursionError: JSON that is nested too deeply.
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            return 0, describe(error, _ERROR_CHARACTERS), ""


def chunks(items: list[Item]) -> list[list[Item]]:
    """Split items into consecutive parts.

    Returns:
        Parts of at most CHUNK_ITEMS answers and, unless it is a single answer, CHUNK_CHARACTERS characters.
    """
    parts: list[list[Item]] = []
    characters = 0
    for item in items:
        size = len(item[1]) + len(str(item[2]))
        if not parts or len(parts[-1]) >= CHUNK_ITEMS or characters + size > CHUNK_CHARACTERS:
            parts.append([])
            characters = 0
        parts[-1].append(item)
        characters += size
    return parts


def _item(verifier: str, response: str, subject: Any) -> dict[str, Any]:
    """Return an item of a request; what a function may ask for beside the answer is its `sample`."""
    if not isinstance(subject, Sample):
        return {"verifier": verifier, "response": response, "answer": subject}
    answer, sample = subject.prompt.answer, subject.to_dict()
    return {"verifier": verifier, "response": response, "answer": answer, "sample": sample}


def _written(verifier: str, response: str, subject: Any) -> dict[str, Any] | Outcome:
    """Return an item of a request, or the outcome of one that JSON cannot hold."""
    try:
        return _item(verifier, response, subject)
    except (TypeError, ValueError, RecursionError) as error:
        return Outcome(None, error=f"a column cannot be sent to the reward service: {describe(error)}")


def _outcomes(reply: Any, expected: int) -> list[Outcome]:
    found = reply.get("outcomes") if isinstance(reply, dict) else None
    if not isinstance(found, list):
        return _failed(expected, f"the reward service's answer cannot be read: {brief(reply)}")
    if len(found) != expected:
        return _failed(expected, f"the reward service gave {len(found)} outcomes for {expected} answers")
    return [_outcome(each) for each in found]


def _outcome(found: Any) -> Outcome:
    """Return one outcome of a reply; a data failure where it is none."""
    try:
        reward, parts = found["reward"], found.get("parts", {})
        outcome = Outcome(
            None if reward is None else _number(reward),
            _text(found.get("detail", "")),
            _text(found.get("error", "")) or ("it gave neither reward nor error" if reward is None else ""),
            bool(found.get("timed_out", False)),
            _number(found.get("elapsed_s", 0.0)),
            found.get("given"),
            bool(found.get("skipped", False)),
            {_text(name): _number(value) for name, value in parts.items()},
            None if (ends := found.get("ends")) is None else read_range(ends, "ends"),
        )
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        return Outcome(
            None, error=f"an outcome of the reward service cannot be read: {describe(error)}: {brief(found)}"
        )
    return outcome


def _number(value: Any) -> float:
    """Return a finite number of JSON as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{brief(value)} is not a finite number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{brief(value)} is not text")
    return value


def _failed(number: int, error: str) -> list[Outcome]:
    return [Outcome(None, error=error)] * number


def _refusal(text: str) -> tuple[str, str]:
    """Return the message of an error reply, in one line, and the field of the request that it names."""
    place = ""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        found = json.loads(text)["error"]
        text, place = found["message"], str(found.get("param") or "")
    return one_line(" ".join(str(text).split()), _ERROR_CHARACTERS), place


def _error(what: str) -> Exception:
    from kray.errors import KrayError

    return KrayError(f"reward service: {what}")
