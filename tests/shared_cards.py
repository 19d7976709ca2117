"""A card with little memory, and engines and learner ranks that use it as real ones do, on a clock of its own.

An engine's weights are gone after it slept, and what it generates without new ones, or without its memory for keys and values,
is an error; so is memory beyond what the card has. Each party can be told to die at one of its calls.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import numpy as np
from ray.exceptions import RayActorError

from kray.config.schema import RolloutConfig
from kray.errors import InfrastructureError
from kray.records import Rollout
from kray.rollout.outcome import EngineReport
from kray.rollout.pool_state import Published
from kray.weight_sync.flat_weights import Gathered
from kray.weight_sync.proof import Proof

CARD, WEIGHTS, CACHE, LEARNER = 10, 3, 5, 9


class ClocklessLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        real = self._selector.select

        def select(timeout: float | None = None) -> Any:
            if timeout is None:
                raise RuntimeError("nothing is left that could happen")
            self.now += timeout
            return real(0)

        self._selector.select = select  # type: ignore[method-assign]

    def time(self) -> float:
        return self.now


class Cards:
    """The cards of a machine.

    Attributes:
        held: Card -> party -> memory that it holds.
        log: (party, method) of all calls.
        errors: What parties did that the real ones could not do.
        deaths: Party -> the call at which it dies, counted from 0; each happens once.
        kills: Call of the learner -> the engine that dies while it sleeps, during this call, which takes long.
        engines: The newest engine of each name.
    """

    def __init__(self, deaths: dict[str, int] | None = None, kills: dict[int, str] | None = None):
        self.held: dict[int, Counter[str]] = {}
        self.log: list[tuple[str, str]] = []
        self.errors: list[str] = []
        self.deaths, self.kills = dict(deaths or {}), dict(kills or {})
        self.engines: dict[str, RecordedEngine] = {}
        self._calls: Counter[str] = Counter()

    def take(self, card: int, party: str, amount: int) -> None:
        held = self.held.setdefault(card, Counter())
        held[party] += amount
        if held.total() > CARD:
            self.errors.append(f"out of memory: {dict(held)}")

    def free(self, card: int, party: str, amount: int | None = None) -> None:
        held = self.held.setdefault(card, Counter())
        held[party] -= held[party] if amount is None else amount

    def error(self, text: str) -> None:
        self.errors.append(text)
        raise RuntimeError(text)

    async def called(self, party: str, method: str) -> None:
        """Note a call; raise RayActorError where the party dies at it."""
        self.log.append((party, method))
        # The second engine is the slower one.
        await asyncio.sleep(0.3 if party == "engine-1" else 0.1)
        self._calls[party] += 1
        victim = self.kills.pop(self._calls[party] - 1, "") if party == "learner" else ""
        if victim in self.engines:
            self.engines[victim].kill()
            await asyncio.sleep(60.0)
        if self.deaths.get(party) == self._calls[party] - 1:
            del self.deaths[party]
            raise RayActorError(error_msg=f"{party} died in {method}")


class Weights:
    """Published weights, and the rank that owns them."""

    def __init__(self, version: int, owner: Any):
        self.version, self.owner = version, owner


class RecordedEngine:
    """An engine of a card, as its actor's handle."""

    def __init__(self, cards: Cards, card: int):
        self.cards, self.card, self.name = cards, card, f"engine-{card}"
        # Version of the weights; None: there are none.
        self.weights: int | None = -1
        self.cache = True
        self.dead = self.asleep = False
        self.tasks: list[Any] = []
        self.changed = asyncio.Event()
        cards.engines[self.name] = self

    def __getattr__(self, method: str) -> Any:
        return _Method(self, "ready" if method == "__ray_ready__" else method)

    def kill(self) -> None:
        self.dead = True
        self.cards.free(self.card, self.name)

    async def call(self, method: str, *args: Any) -> Any:
        if not self.dead:
            try:
                if method not in ("_collect", "_ready", "_ping"):
                    await self.cards.called(self.name, method.strip("_"))
            except RayActorError:
                self.kill()
        if self.dead:
            raise RayActorError(error_msg="it is dead")
        return await getattr(type(self), method)(self, *args)

    async def _ready(self) -> None:
        pass

    async def _ping(self) -> None:
        pass

    async def _start(self) -> dict[str, Any]:
        self.cards.take(self.card, self.name, WEIGHTS + CACHE)
        return {"process": {}}

    async def _submit(self, tasks: list[Any]) -> None:
        if self.asleep or self.weights is None or not self.cache:
            self.cards.error("an engine without weights or cache was given tasks")
        self.tasks += tasks
        self.changed.set()

    async def _cancel(self, ids: list[int]) -> None:
        self.tasks = [task for task in self.tasks if task.id not in ids]

    async def _wake(self) -> None:
        self.changed.set()

    async def _collect(self, timeout_s: float) -> EngineReport:
        if not self.tasks:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), timeout_s)
        self.changed.clear()
        report = EngineReport()
        if self.tasks:
            await self.cards.called(self.name, "generate")
            report.finished = [(task.id, self._rollouts(task)) for task in self.tasks]
            self.tasks = []
        return report

    def _rollouts(self, task: Any) -> list[Rollout]:
        if self.weights is None or not self.cache:
            self.cards.error("an engine generated without weights or cache")
        tokens, logprobs = np.zeros(1, np.int32), np.zeros(1, np.float32)
        return [
            Rollout(task.prompt_id, i, tokens, logprobs, "stop", ((self.weights, 0, 1),)) for i in range(task.rollouts)
        ]

    async def _sleep(self) -> None:
        if self.tasks:
            self.cards.error("an engine with tasks was put to sleep")
        self.weights, self.cache, self.asleep = None, False, True
        self.cards.free(self.card, self.name)

    async def _wake_weights(self) -> None:
        if not self.asleep:
            self.cards.error("an engine was woken that did not sleep")
        self.cards.take(self.card, self.name, WEIGHTS)
        self.asleep = False

    async def _update(self, version: int, weights: Weights, probe: list[int]) -> Proof:
        if self.asleep:
            self.cards.error("an engine that sleeps was given weights")
        if weights.owner.dead:
            raise RayActorError(error_msg="the weights are lost with their rank")
        self.weights = weights.version
        if not self.cache:
            self.cards.take(self.card, self.name, CACHE)
            self.cache = True
        return Proof(np.zeros(1, np.float32), str(weights.version), {})


class _Method:
    def __init__(self, engine: RecordedEngine, name: str):
        self.engine, self.name = engine, name

    def remote(self, *args: Any) -> Any:
        return asyncio.ensure_future(self.engine.call(f"_{self.name}", *args))


class RecordedActors:
    """In place of EngineActor: makes recorded engines by the options that the supervisor gives."""

    def __init__(self, cards: Cards):
        self.cards = cards

    def options(self, **options: Any) -> RecordedActors:
        self.card = options["card"]
        return self

    def remote(self, spec: Any) -> RecordedEngine:
        return RecordedEngine(self.cards, self.card)


class Rank:
    """The process of the ranks."""

    dead = False


class RecordedLearners:
    """Ranks on the cards, with the methods of LearnerGroup that workers use."""

    def __init__(self, cards: Cards, ranks: int):
        self.cards, self.ranks, self.rank = cards, ranks, Rank()
        self.rank.dead = True
        self.on_device, self.version = False, 0

    def share(self, engine_cpus: int, before_use: Any) -> None:
        self.before_use = before_use

    async def _called(self, method: str) -> None:
        try:
            await self.cards.called("learner", method)
        except RayActorError as error:
            self.kill()
            raise InfrastructureError(str(error)) from error
        if self.rank.dead:
            raise InfrastructureError("learner: it is not running")

    def _use(self) -> None:
        if not self.on_device:
            self.cards.error("the learner computed without its state on the device")

    async def start(self) -> None:
        self.rank = Rank()
        for card in range(self.ranks):
            self.cards.take(card, "learner", LEARNER)
        self.on_device = True
        await self._called("start")

    async def move(self, method: str) -> list[int]:
        await self._called(method)
        enters = method == "enter_device"
        if enters is not self.on_device:
            for card in range(self.ranks):
                self.cards.take(card, "learner", LEARNER) if enters else self.cards.free(card, "learner")
        self.on_device = enters
        return [LEARNER]

    async def update(self) -> None:
        await self.before_use()
        await self._called("update")
        self._use()

    async def publication(self, version: int) -> Published:
        await self.before_use()
        await self._called("weights")
        self._use()
        gathered = Gathered(1, str(version), 0.0, 0.0)
        return Published(version, Weights(version, self.rank), gathered.checksum, (1, 2), np.zeros(1, np.float32))

    def kill(self) -> None:
        self.rank.dead, self.on_device = True, False
        for card in range(self.ranks):
            self.cards.free(card, "learner")


def rollout_config(engines: int) -> RolloutConfig:
    return RolloutConfig(engines=engines, colocate=True, max_restarts=9, start_timeout_s=5000.0, sync_timeout_s=100.0)
