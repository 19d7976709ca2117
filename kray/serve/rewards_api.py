"""The rewards' HTTP API: scores responses in processes of its own, each with a deadline (kray/rewards/scorer.py).

    POST /v1/score  {"verifier": "math", "options": {}, "items": [{"response": "...", "answer": "42"}, ...]}
                    -> {"outcomes": [{"reward": 1.0, "detail": "", "error": "", "timed_out": false, "elapsed_s": 0.002}, ...]}

An item may name a verifier of its own, which then gets no options, and hold a `sample`: what functions may ask for beside the
answer (kray/rewards/signatures.py). `reward` is null exactly when `error` holds the reason.
Clients do not choose what code runs here: only the verifiers that the server was started with are called, with the server's
isolation of programs. kray.rewards.remote is the client that training uses (reward.url).
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import Field

from kray.config.validation import CODE_TIMEOUT_S
from kray.rewards import VERIFIERS, Sample, Scorer, check_verifier
from kray.serve.gate import Gate, Limits, Refusal, health
from kray.serve.messages import Message, refuse_invalid_requests
from kray.serve.replica_server import stay_local

# Most items of one request.
MAX_ITEMS = 1024
# Most verifiers, each with its options, that have processes at a time.
MAX_SCORERS = 4


@dataclass(frozen=True, slots=True)
class ScoringSpec:
    """Settings of the service.

    Attributes:
        verifiers: Verifiers that may be called.
        workers: Processes of each verifier with its options.
        timeout_s: Seconds for one response.
        memory_gib: Memory limit of one process in GiB; 0: none.
        isolation: Isolation of the code verifier, see kray/rewards/code.py.
        start_timeout_s: Seconds for a process to start and import its verifier.
    """

    verifiers: tuple[str, ...] = tuple(VERIFIERS)
    workers: int = 1
    timeout_s: float = 10.0
    memory_gib: float = 4.0
    isolation: str = "strict"
    start_timeout_s: float = 60.0


class SampleFields(Message):
    """What a function may ask for beside response and answer; exactly one of text and messages is set."""

    id: str
    source: str
    columns: dict[str, Any]
    tokens: list[int]
    text: str | None = None
    messages: list[dict[str, str]] | None = None


class Item(Message):
    """One response to score; `verifier` overrides that of the request."""

    response: str
    answer: str
    verifier: str = ""
    sample: SampleFields | None = None

    def subject(self) -> str | Sample:
        """Return what the verifier compares the response with."""
        return self.answer if self.sample is None else Sample.from_dict(self.sample.model_dump(), self.answer)


class Score(Message):
    """Body of POST /v1/score."""

    items: Annotated[list[Item], Field(max_length=MAX_ITEMS)]
    verifier: str
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(slots=True)
class _SharedScorer:
    """The processes of one verifier with its options, and how many requests use them now."""

    scorer: Scorer
    users: int = 0


@dataclass(slots=True)
class ScorerCache:
    """Scorers by verifier and options, at most MAX_SCORERS; the least recently used idle one is closed. No HTTP.

    Attributes:
        spec: Settings of the service.
    """

    spec: ScoringSpec
    _scorers: OrderedDict[str, _SharedScorer] = field(default_factory=OrderedDict)

    async def score(self, request: Score) -> list[dict[str, Any]]:
        """Return the outcomes in the order of the items.

        Raises:
            Refusal: A verifier or an option is not allowed, or too many verifiers are in use.
        """
        for i, item in enumerate(request.items):
            self._check_allowed(item.verifier or request.verifier, f"items.{i}.verifier")
        self._check_allowed(request.verifier, "verifier")
        shared = await self._shared_scorer(request.verifier, self._options(request))
        shared.users += 1
        try:
            outcomes = await shared.scorer.score(
                (item.verifier, item.response, item.subject()) for item in request.items
            )
        finally:
            shared.users -= 1
        return [asdict(outcome) for outcome in outcomes]

    def close(self) -> None:
        """End all processes."""
        for shared in self._scorers.values():
            shared.scorer.close()

    def _check_allowed(self, verifier: str, place: str) -> None:
        if verifier not in self.spec.verifiers:
            known = ", ".join(self.spec.verifiers)
            raise Refusal(422, f"{place}: {verifier!r} is not served here; there are: {known}", "verifier", place)

    def _options(self, request: Score) -> dict[str, Any]:
        options = dict(request.options)
        if request.verifier != "code":
            return options
        if options.pop("isolation", self.spec.isolation) != self.spec.isolation:
            raise Refusal(422, f"options.isolation: this server's is {self.spec.isolation}", "options", "options")
        own_s = options.get("timeout_s", CODE_TIMEOUT_S)
        if isinstance(own_s, int | float) and own_s >= self.spec.timeout_s:
            text = f"options.timeout_s {own_s:g} must be below the server's {self.spec.timeout_s:g}"
            raise Refusal(422, text, "options", "options")
        return options | {"isolation": self.spec.isolation}

    async def _shared_scorer(self, verifier: str, options: dict[str, Any]) -> _SharedScorer:
        name = json.dumps([verifier, options], sort_keys=True)
        if name not in self._scorers:
            try:
                await asyncio.to_thread(check_verifier, verifier, **options)
            except (ValueError, TypeError) as error:
                raise Refusal(422, f"options: {error}", "options", "options") from error
        if name not in self._scorers:  # another request may have added it in the meantime
            self._evict_if_full()
            spec = self.spec
            made = Scorer(verifier, options, spec.workers, spec.timeout_s, spec.start_timeout_s, spec.memory_gib)
            self._scorers[name] = _SharedScorer(made)
        self._scorers.move_to_end(name)
        return self._scorers[name]

    def _evict_if_full(self) -> None:
        if len(self._scorers) < MAX_SCORERS:
            return
        idle = next((name for name, shared in self._scorers.items() if not shared.users), None)
        if idle is None:
            text = f"{MAX_SCORERS} verifiers with their options are in use; try again in a second"
            raise Refusal(429, text, "busy")
        self._scorers.pop(idle).scorer.close()


class Rewards:
    """A replica of the service."""

    def __init__(self, spec: ScoringSpec, limits: Limits, key_digest: str):
        """Create a replica.

        Args:
            spec: Settings of the service.
            limits: Limits of requests.
            key_digest: Digest of the key, "" for none.
        """
        from kray.serve.meters import Meters

        stay_local()
        self.scorers, self.limits, self.key_digest = ScorerCache(spec), limits, key_digest
        self.meters = Meters("rewards")

    def __serve_build_asgi_app__(self) -> Any:
        from fastapi import FastAPI

        app = FastAPI(title="kray rewards")

        @app.post("/v1/score")
        async def score(request: Score) -> dict[str, Any]:
            outcomes = await self.scorers.score(request)
            self.meters.count_items(len(outcomes))
            return {"outcomes": outcomes}

        refuse_invalid_requests(app)
        health(app, self.check_health)
        app.add_middleware(Gate, limits=self.limits, key_digest=self.key_digest, meters=self.meters)
        return app

    async def check_health(self) -> None:
        """Do nothing, because scorers replace their processes themselves; called by Serve."""

    def __del__(self) -> None:
        if scorers := getattr(self, "scorers", None):
            scorers.close()
