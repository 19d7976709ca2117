"""Rewards as a service: judges answers in processes of its own, each under a deadline (kray/rewards/scorer.py).

    POST /v1/score  {"verifier": "math", "options": {}, "items": [{"response": "...", "answer": "42"}, ...]}
                    -> {"outcomes": [{"reward": 1.0, "detail": "", "error": "", "timed_out": false, "elapsed_s": 0.002}, ...]}

An item may name a verifier of its own, which then gets no options. reward is null exactly when error says why. Who sends
requests does not choose what code is run here: only verifiers that the server was started with are called, and how
programs are kept in (`isolation`) is the server's. kray.rewards.remote is the client that training uses (reward.url).
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kray.config.validation import CODE_TIMEOUT_S
from kray.rewards import VERIFIERS, Scorer, check_verifier
from kray.serve.gate import Gate, Limits, Refusal, health
from kray.serve.planner_api import name_fields

ITEMS = 1024  # of one request
KINDS = 4  # verifiers with their options that have processes at a time


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """verifiers: those that may be called. workers: processes of each kind. timeout_s: for one answer. memory_gib: of one
    process. isolation: of the code verifier, see kray/rewards/code.py."""

    verifiers: tuple[str, ...] = tuple(VERIFIERS)
    workers: int = 1
    timeout_s: float = 10.0
    memory_gib: float = 4.0
    isolation: str = "strict"
    start_timeout_s: float = 60.0


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Item(Message):
    response: str
    answer: str
    verifier: str = ""


class Score(Message):
    items: Annotated[list[Item], Field(max_length=ITEMS)]
    verifier: str
    options: dict[str, Any] = {}


@dataclass(slots=True)
class _Kind:
    """The processes for one verifier with its options, and how many requests use them now."""

    scorer: Scorer
    users: int = 0


@dataclass(slots=True)
class Judges:
    """The scorers that requests have asked for, at most KINDS; the one not used for longest makes room. No HTTP here."""

    spec: JudgeSpec
    _kinds: OrderedDict[str, _Kind] = field(default_factory=OrderedDict)

    async def score(self, request: Score) -> list[dict[str, Any]]:
        """Outcomes in the order of the items. Raises Refusal."""
        for at, item in enumerate(request.items):
            self._allowed(item.verifier or request.verifier, f"items.{at}.verifier")
        self._allowed(request.verifier, "verifier")
        kind = await self._kind(request.verifier, self._options(request))
        kind.users += 1
        try:
            outcomes = await kind.scorer.score((item.verifier, item.response, item.answer) for item in request.items)
        finally:
            kind.users -= 1
        return [asdict(outcome) for outcome in outcomes]

    def close(self) -> None:
        for kind in self._kinds.values():
            kind.scorer.close()

    def _allowed(self, verifier: str, place: str) -> None:
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

    async def _kind(self, verifier: str, options: dict[str, Any]) -> _Kind:
        name = json.dumps([verifier, options], sort_keys=True)
        if name not in self._kinds:
            try:
                await asyncio.to_thread(check_verifier, verifier, **options)
            except (ValueError, TypeError) as error:
                raise Refusal(422, f"options: {error}", "options", "options") from error
        if name not in self._kinds:  # nor has another request made it in the meantime
            self._make_room()
            spec = self.spec
            made = Scorer(verifier, options, spec.workers, spec.timeout_s, spec.start_timeout_s, spec.memory_gib)
            self._kinds[name] = _Kind(made)
        self._kinds.move_to_end(name)
        return self._kinds[name]

    def _make_room(self) -> None:
        if len(self._kinds) < KINDS:
            return
        idle = next((name for name, kind in self._kinds.items() if not kind.users), None)
        if idle is None:
            raise Refusal(429, f"{KINDS} verifiers with their options are in use here; try again in a second", "busy")
        self._kinds.pop(idle).scorer.close()


class Rewards:
    """The body of a replica."""

    def __init__(self, spec: JudgeSpec, limits: Limits, key_digest: str):
        from kray.serve.meters import Meters

        self.judges, self.limits, self.key_digest = Judges(spec), limits, key_digest
        self.meters = Meters("rewards")

    def __serve_build_asgi_app__(self) -> Any:
        from fastapi import FastAPI

        app = FastAPI(title="kray rewards")

        @app.post("/v1/score")
        async def score(request: Score) -> dict[str, Any]:
            outcomes = await self.judges.score(request)
            self.meters.count_items(len(outcomes))
            return {"outcomes": outcomes}

        name_fields(app)
        health(app, self.check_health)
        app.add_middleware(Gate, limits=self.limits, key_digest=self.key_digest, meters=self.meters)
        return app

    async def check_health(self) -> None:
        """Called by Serve. A scorer replaces its processes by itself."""

    def __del__(self) -> None:
        if judges := getattr(self, "judges", None):
            judges.close()
