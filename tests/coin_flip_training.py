"""The real training loop over simulated rollouts, so that resuming can be tested in milliseconds.

Prompts, sampler, planner, beliefs, recorder, quarantine and checkpoints are the real ones. Engines and learner are replaced: a
response is right with a probability that depends on its prompt and on the policy version, drawn from the rollout's seed, and
the learner's weight is one number that depends on every reward it was given.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch

from kray.config import KrayConfig, load_config, require
from kray.config.players import Player
from kray.config.schema import EnvironmentConfig
from kray.driver.components import Components, make_features
from kray.driver.loop import Training
from kray.driver.opponents import Opponents
from kray.driver.output import SilentConsole
from kray.driver.restore import make_admission, prior_labels
from kray.driver.state import RunState
from kray.driver.stop import Stop, Stopped
from kray.errors import KrayError
from kray.planner import KnapsackPlanner
from kray.prompts import PromptSampler
from kray.records import EncodedPrompt, Prompt, Rollout, RolloutGroup
from kray.rollout.collected import CollectedStep
from kray.rollout.collector import Collector
from kray.rollout.outcome import Failure
from kray.rollout.pool_state import Published
from kray.train.checkpoints import CheckpointStore, newest_checkpoint, read_state
from kray.weight_sync.flat_weights import FlatWeights

CONFIG = """
run: {steps: 8, checkpoint_every: 0}
model: {tiny: {}}
prompts: {per_step: 16}
plan: {budget: 96, upper: 24}
evaluate: {every: 0, samples: 1, greedy: false}
track: {every: 3, traces: 0}
"""
PROMPTS = 160


class CountingTokenizer:
    """A tokenizer without special tokens; it decodes tokens to their number."""

    all_special_tokens: ClassVar[list[str]] = []
    added_tokens_decoder: ClassVar[dict[int, str]] = {}

    def decode(self, tokens, **_) -> str:
        return f"{len(tokens)} tokens"


TOKENIZER = CountingTokenizer()
# A prompt whose rollouts all fail.
FAILS = "p7"


def configured(folder: Path, *overrides: str) -> KrayConfig:
    """Load CONFIG with overrides and check it."""
    file = folder / "coin.yaml"
    file.write_text(CONFIG)
    config = load_config(str(file), list(overrides))
    require(config)
    return config


def make_parts(config: KrayConfig) -> Components:
    """Make prompts of two sources and three kinds, one of which is easier; features show the kind."""
    train = [
        EncodedPrompt(
            Prompt(f"p{i}", "", "exact", f"source-{i % 2}", text=str(i), metadata={"kind": f"kind-{i % 3}"}),
            (1,) * (1 + i),
        )
        for i in range(PROMPTS)
    ]
    test = [EncodedPrompt(Prompt(f"t{i}", "", "exact", "test", text=str(i)), (1,)) for i in range(4)]
    ids = [prompt.id for prompt, _ in train]
    return Components(
        tokenizer=TOKENIZER,
        stop_ids=(),
        stops=(),
        train=train,
        test=test,
        sampler=PromptSampler(ids, config.prompts.per_step, config.run.seed, config.prompts.shuffle),
        admission=make_admission(config, ids),
        planner=KnapsackPlanner.of(config.plan),
        labels=prior_labels([prompt for prompt, _ in train], config.plan.prior_by),
        features=make_features(train) if config.plan.prior_features else None,
        probe=(),
    )


class CoinFlipCollector(Collector):
    """Collect at once, in the order of the plan; with `failing` more rollouts fail than a run allows."""

    failing = False

    def __init__(self) -> None:
        self.lengths: dict[str, float] = {}
        self.rollout, self.tokenizer, self.scorer, self.host = KrayConfig().rollout, TOKENIZER, None, None

    async def collect(self, plan, prompts, draw, priority=0) -> CollectedStep:
        rollouts: dict[str, list[Rollout]] = {}
        failures: list[Failure] = []
        while not plan.done:
            for prompt_id, count in plan.take(plan.room()):
                if prompt_id == FAILS:
                    plan.lost(prompt_id, count)
                    failures.append(Failure(prompt_id, count, "it always fails", 1))
                    continue
                found = rollouts.setdefault(prompt_id, [])
                seed = draw.seeds(prompt_id)
                made = [flip(prompt_id, seed, len(found) + i, draw.version) for i in range(count)]
                found += made
                plan.observe(prompt_id, [r.reward for r in made], float(sum(r.sampled_tokens for r in made)))
            await asyncio.sleep(0)
        if self.failing:
            failures.append(Failure("p1", 10**6, "it is lost", 1))
        allocation = plan.allocation().admitted()
        given = zip(allocation.weights.tolist(), map(tuple, allocation.beliefs.tolist()), strict=True)
        planned = dict(zip(allocation.prompt_ids, given, strict=True))
        known = [pair for pair in prompts if pair.prompt.id in rollouts]
        groups = [RolloutGroup(*pair, rollouts[pair.prompt.id], *planned[pair.prompt.id]) for pair in known]
        return CollectedStep(allocation, groups, failures, generate_s=1.0, reward_s=0.1)


def flip(prompt_id: str, seed: int, index: int, version: int) -> Rollout:
    number = int(prompt_id[1:])
    rate = (0.1, 0.5, 0.9)[number % 3] * (0.6 + 0.01 * version + 0.3 * (number % 7 == 0))
    rng = np.random.default_rng([seed, index])
    reward, length = float(rng.random() < rate), int(rng.integers(1, 20))
    tokens = np.zeros(length, dtype=np.int32)
    spans = ((version, 0, length),)
    return Rollout(prompt_id, index, tokens, np.zeros(length, np.float32), "stop", spans, "", reward)


class CoinFlipLearners:
    """Learners whose only weight depends on every reward and on their order; `after_update(step)` may raise."""

    def __init__(self) -> None:
        self.weight, self.updates, self.nonfinite_steps = 0.0, 0, 0
        self.after_update: Callable[[int], None] = lambda step: None

    async def update(self, groups: list[RolloutGroup], seed: int = 0) -> dict[str, float]:
        self.weight = self.weight * 0.9 + sum(g.weight * float(g.rewards.mean()) for g in groups)
        self.updates += 1
        self.nonfinite_steps = self.updates % 3
        self.after_update(self.updates)
        return {"train/loss": self.weight, "train/skipped": 0.0}

    async def save(self, folder: Path, wait: bool = True) -> None:
        (folder / "weight.json").write_text(json.dumps([self.weight, self.updates]))

    async def saved(self) -> None:
        pass

    def load(self, folder: Path) -> None:
        self.weight, self.updates = json.loads((folder / "weight.json").read_text())


@dataclass
class Ready:
    """A reference to a value that is there."""

    value: Any

    def __await__(self):
        yield from ()
        return self.value


class CoinFlipOpponents(Opponents):
    """Opponents whose engines only note which weight they were given, in `given`."""

    def __init__(self, past: tuple[int, ...] = ()) -> None:
        against = {f"past-{every}": {"opponent": "past", "every": every} for every in past}
        self.given: dict[str, list[float]] = {name: [] for name in against}
        super().__init__(KrayConfig(environment=EnvironmentConfig(evaluate_against=against)), "", "")

    def _pool(self, player: Player) -> Any:
        async def publish(published: Published) -> None:
            ((_, weight),) = (await published.weights).tensors()
            assert published.version == len(self.given[str(player)])
            self.given[str(player)].append(weight.item())

        return SimpleNamespace(start=lambda: None, publish=publish)


class CoinFlipWorkers:
    def __init__(self, past: tuple[int, ...] = ()) -> None:
        self.learners, self.restarts, self.ready = CoinFlipLearners(), {"learner": 0, "driver": 0}, True
        self.scorer = None
        schedule = SimpleNamespace(retried=0)
        self.pool = SimpleNamespace(
            engines=[], serving=1, schedule=schedule, preemptions=0, losses=0, busy_share=lambda: 1.0, published=None
        )
        self.opponents = CoinFlipOpponents(past)

    def collector(self, parts: Components) -> CoinFlipCollector:
        return CoinFlipCollector()

    async def serve(self, version: int) -> float:
        self.pool.published = await self.weights()
        return 0.0

    async def weights(self) -> Published:
        weights = FlatWeights.pack([("weight", torch.tensor([self.learners.weight], dtype=torch.float64))])
        return Published(0, Ready(weights), weights.checksum, (1, 2, 3), np.array([-0.5, -1.5], dtype=np.float32))


@dataclass
class Record:
    """A tracker that keeps what it is given."""

    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    tables: dict[tuple[str, int], Any] = field(default_factory=dict)
    open_command: str = ""
    charts_url: str = ""

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        self.steps.setdefault(step, {}).update(metrics)

    def log_table(self, step: int, rows: Any, name: str = "samples") -> None:
        self.tables[name, step] = json.loads(json.dumps(list(rows)))

    def log_figure(self, *_: Any) -> None:
        pass

    log_traces = log_figure


class CoinFlipTraining(Training):
    """A training that keeps each step's prompts and budgets in `plans`."""

    async def after_collect(self, step: int, collected: CollectedStep) -> None:
        allocation = collected.allocation
        found = dict(zip(allocation.prompt_ids, allocation.budgets.tolist(), strict=True))
        self.plans = {**getattr(self, "plans", {}), step: found}


def begin(
    folder: Path,
    config: KrayConfig,
    record: Record | None = None,
    kind: type[Training] = CoinFlipTraining,
    past: tuple[int, ...] = (),
) -> Training:
    """Make a training from the newest checkpoint in the folder, or from the start where there is none, as the driver does.

    past: `every` of each opponent that is an older version of the policy; with them ray.put must return `Ready`.
    """
    checkpoint, parts, state, workers = newest_checkpoint(folder), make_parts(config), RunState(), CoinFlipWorkers(past)
    if checkpoint is not None:
        state = RunState.from_dict(read_state(checkpoint))
        parts.load(state)
        workers.learners.load(checkpoint / "learner")
    asyncio.run(workers.serve(0))
    asyncio.run(workers.opponents.restore(checkpoint, workers.weights))
    store = CheckpointStore(folder, config.run.keep_checkpoints)
    return kind(config, parts, state, workers, record or Record(), store, Stop(), SilentConsole())


def train(training: Training) -> Exception | None:
    """Train to the end and return the error that ended it, None where there was none."""
    try:
        asyncio.run(training.train())
    except (KrayError, Stopped) as error:
        return error
    return None
