"""Load on the planner's service: clients that plan step after step, each for a run of its own, and an audit of what it kept.

A client opens a plan, takes its rollouts, reports their labels and closes it, and begins again. Refused with 429 it waits for
the seconds of Retry-After and sends the same request again. After the time is over, steps that have begun are completed. Then
every run must have as many steps as its client closed, and the labels of each prompt's latest visit as the client sent them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

# Seconds for one response, and for the steps that have begun when the time is over.
RESPONSE_S = 60.0
COMPLETE_S = 120.0
# The parts of a step, in order.
CALLS = ("open", "take", "observe", "close")


@dataclass(frozen=True)
class Load:
    """What the clients do.

    Attributes:
        url: Of the service.
        key: Its key.
        clients: How many.
        seconds: For how long steps are begun.
        prompts: Of each step.
        sources: Of the prompts; each has a prior of its own, which is fitted when a plan is opened.
        budget: Rollouts of each step.
        mode: plan.mode.
        seed: Of the rewards.
    """

    url: str
    key: str
    clients: int
    seconds: float
    prompts: int = 512
    sources: int = 20
    budget: int = 2048
    mode: str = "static"
    seed: int = 0


@dataclass
class Answers:
    """What came back.

    Attributes:
        seconds: (call, status) -> how long each response took.
        lost: What failed otherwise, with how often.
    """

    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)

    def of(self, status: int, call: str = "") -> list[float]:
        """Return the seconds of all responses with a status, sorted; `call` limits them to one kind."""
        return sorted(
            x for (kind, got), some in self.seconds.items() if got == status and call in ("", kind) for x in some
        )


class Connection:
    """One client's connection, kept open; requests are made one after another."""

    def __init__(self, load: Load):
        parts = urlsplit(load.url)
        assert parts.hostname is not None
        self._host, self._port, self._prefix = parts.hostname, parts.port or 80, parts.path.rstrip("/")
        self._key = load.key
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any, float]:
        """Send a request; return status, JSON and the seconds of Retry-After (0: none).

        Raises:
            OSError, EOFError, ValueError, TimeoutError: There is no proper response.
        """
        try:
            return await asyncio.wait_for(self._request(method, path, body), RESPONSE_S)
        except BaseException:
            self.close()
            raise

    async def _request(self, method: str, path: str, body: Any) -> tuple[int, Any, float]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {self._prefix}{path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            f"authorization: Bearer {self._key}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        answer = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), json.loads(answer), float(headers.get("retry-after", 0))

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Client:
    """One client with its run.

    Attributes:
        run: Name of its run.
        steps: Plans that it closed.
        latest: Prompt id -> the rewards of its latest visit.
    """

    def __init__(self, load: Load, number: int, answers: Answers):
        self.load, self.answers, self.run = load, answers, f"load-{load.seed}-{number}"
        self.steps = 0
        self.latest: dict[str, list[float]] = {}
        self._random = random.Random(f"{load.seed}:{number}")
        self._ids = [f"prompt-{i}" for i in range(load.prompts)]
        self._rates = [self._random.betavariate(0.5, 1.0) for _ in self._ids]
        self._connection = Connection(load)

    async def work(self, until: float) -> None:
        """Plan step after step until that time; complete the step that has begun then."""
        try:
            while time.monotonic() < until:
                opened = await self._ask("open", "POST", "/v1/plans", self._opening(), until)
                if opened is None:
                    return
                await self._carry_out(f"/v1/plans/{opened['id']}")
        except (OSError, EOFError, ValueError, KeyError, TimeoutError, asyncio.IncompleteReadError) as error:
            self.answers.lost[f"{type(error).__name__}: {error}"[:100]] += 1
        finally:
            self._connection.close()

    def _opening(self) -> dict[str, Any]:
        load = self.load
        sources = [f"source-{i % load.sources}" for i in range(load.prompts)]
        sizes = {"budget": load.budget, "mode": load.mode, "upper": 32}
        return {"run": self.run, "prompt_ids": self._ids, "prior_of": sources} | sizes

    async def _carry_out(self, plan: str) -> None:
        part = 0
        labels: dict[str, list[float]] = {}
        while True:
            taken = await self._ask("take", "POST", f"{plan}/take", {"request_id": f"take-{part}"})
            if taken["done"]:
                break
            found = [{"prompt_id": x["prompt_id"], "rewards": self._rewards(**x)} for x in taken["take"]]
            for label in found:
                labels[label["prompt_id"]] = labels.get(label["prompt_id"], []) + label["rewards"]
            told = await self._ask(
                "observe", "POST", f"{plan}/observe", {"labels": found, "request_id": f"observe-{part}"}
            )
            part += 1
            if told["done"]:
                break
        await self._ask("close", "DELETE", plan)
        self.steps += 1
        self.latest |= labels

    def _rewards(self, prompt_id: str, rollouts: int) -> list[float]:
        rate = self._rates[int(prompt_id.removeprefix("prompt-"))]
        return [float(self._random.random() < rate) for _ in range(rollouts)]

    async def _ask(self, call: str, method: str, path: str, body: Any = None, until: float | None = None) -> Any:
        """Send a request until it is not refused; None where that is after `until`.

        Raises:
            ValueError: The response is an error.
        """
        while True:
            begun = time.monotonic()
            status, answer, retry_after_s = await self._connection.request(method, path, body)
            self.answers.seconds.setdefault((call, status), []).append(time.monotonic() - begun)
            if status == 200:
                return answer
            if status != 429:
                raise ValueError(f"{status} {answer['error']['message']}")
            if until is not None and time.monotonic() + retry_after_s >= until:
                return None
            # The server may close a connection that is idle for so long.
            self._connection.close()
            # Not all at once.
            await asyncio.sleep(retry_after_s * (1 + self._random.random() / 2))

    async def check(self, connection: Connection) -> str:
        """Return how what the service kept differs from what this client did, "" for nothing."""
        if not self.steps:
            return ""
        status, kept, _ = await connection.request("GET", f"/v1/runs/{self.run}")
        if status != 200 or kept["steps"] != self.steps:
            return f"{self.run}: {kept.get('steps')} steps were kept, {self.steps} closed"
        beliefs = kept["beliefs"]
        columns = zip(beliefs["prompt_ids"], beliefs["last_successes"], beliefs["last_trials"], strict=True)
        found = {prompt_id: (passed, trials) for prompt_id, passed, trials in columns if trials}
        sent = {prompt_id: (sum(rewards), len(rewards)) for prompt_id, rewards in self.latest.items()}
        return "" if found == sent else f"{self.run}: labels differ from those sent"


async def put_under_load(load: Load) -> dict[str, Any]:
    """Run the clients and the audit; return the figures."""
    answers = Answers()
    clients = [Client(load, number, answers) for number in range(load.clients)]
    begun = time.monotonic()
    work = asyncio.gather(*(client.work(begun + load.seconds) for client in clients))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(work, load.seconds + COMPLETE_S)
    took_s = time.monotonic() - begun
    connection = Connection(load)
    problems = [problem for client in clients if (problem := await client.check(connection))]
    connection.close()
    problems += [f"{times} x {what}" for what, times in answers.lost.items()]
    return figures(answers, took_s) | {"steps": sum(client.steps for client in clients), "problems": problems}


def figures(answers: Answers, took_s: float) -> dict[str, Any]:
    """Return counts, rates and latencies in seconds; `all` is every call with status 200, `refused` every 429."""
    latency = {call: spread(answers.of(200, call)) for call in CALLS}
    latency |= {"all": spread(answers.of(200)), "refused": spread(answers.of(429))}
    counts = Counter({str(status): 0 for status in (200, 429)})
    for (_, status), seconds in answers.seconds.items():
        counts[str(status)] += len(seconds)
    return {"seconds": took_s, "responses": dict(counts), "latency_s": latency}


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the largest of sorted numbers; zeros where there are none."""
    if not seconds:
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    return {
        "p50": seconds[len(seconds) // 2],
        "p99": seconds[min(len(seconds) - 1, len(seconds) * 99 // 100)],
        "max": seconds[-1],
    }


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield the figures as a table."""
    yield f"{'':12}{'responses':>10}{'p50 s':>9}{'p99 s':>9}{'max s':>9}"
    counted = {"all": found["responses"]["200"], "refused": found["responses"]["429"]}
    for name, row in found["latency_s"].items():
        yield f"{name:12}{counted.get(name, ''):>10}{row['p50']:>9.3f}{row['p99']:>9.3f}{row['max']:>9.3f}"
    yield f"{found['steps']} steps in {found['seconds']:.1f} s; lost: {'; '.join(found['problems']) or 'nothing'}"
