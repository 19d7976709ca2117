"""The processes of a run: learner ranks, engines, scorer and environments. Held by the driver actor."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from kray.config import KrayConfig, RewardConfig, SourceConfig
from kray.config.actor_options import variables_of
from kray.config.devices import dtype_of
from kray.config.players import START, Player
from kray.driver.broadcasts import Broadcasts, HandedOver
from kray.driver.components import Components, engine_spec
from kray.driver.opponents import Opponents, training_players
from kray.driver.stop import Stop
from kray.environments import roles_of
from kray.environments.role_workers import RoleWorkers
from kray.environments.workers import EnvironmentWorkers
from kray.errors import ConfigError
from kray.prompts.sources import test_sources
from kray.reward_settings import FUNCTIONS, JUDGE, function_key, judges_of, read_range, reward_functions
from kray.rewards.composed import ComposedScorer
from kray.rewards.judge import Judge, JudgeUsage, api_key
from kray.rewards.outcome import Ranges
from kray.rewards.remote import RemoteScorer
from kray.rewards.scorer import Scorer
from kray.rollout.collector import EVALUATION, TRAINING, Collector
from kray.rollout.conversation import ConversationRunner
from kray.rollout.episodes import EpisodeRunner
from kray.rollout.pool import Pool
from kray.rollout.pool_state import Published
from kray.rollout.views import Encoder
from kray.train.learner_group import LearnerGroup

logger = logging.getLogger(__name__)


class Workers:
    """All processes that work for a run.

    Attributes:
        ready: The learner holds the policy.
        learners: The learner ranks.
        pool: The engines.
        broadcasts: Sends weights by buckets; None: they go through the object store.
        scorer: Computes rewards.
        environments: Processes of the environment; None without one.
        roles: Of the environment; () for one without.
        opponents: Players that do not learn.
        restarts: How often learner and driver were started again.
    """

    def __init__(self, config: KrayConfig, model_path: str, label: str, stop: Stop):
        """Start nothing.

        Args:
            config: The run's configuration.
            model_path: The start model's folder or hub id.
            label: Part of the actors' names.
            stop: Tells that the run is to end; waits are given up then.
        """
        self.config, self.stop = config, stop
        self.ready = False
        self.learners = LearnerGroup(
            config.train,
            dtype_of(config),
            model_path,
            config.run.steps,
            config.run.seed,
            config.rollout.temperature,
            placement_timeout_s=config.rollout.start_timeout_s,
            lora=config.model.lora,
            label=label,
            env=variables_of(config.run.env),
        )
        self.restarts = {"learner": 0, "driver": 0}
        self.pool = Pool(config.rollout, engine_spec(config, model_path), label)
        bucket_mib = config.rollout.sync_bucket_mib
        self.broadcasts = Broadcasts(self.learners, self.pool, bucket_mib) if bucket_mib else None
        sources = [config.prompts.train, *test_sources(config.prompts).values()]
        self.scorer = make_scorer(config.reward, [source.verifier for source in sources])
        environment, memory_gib = config.environment, config.reward.memory_gib
        self.roles = roles_of(environment.name, environment.options) if environment.name else ()
        self.environments: EnvironmentWorkers | None = None
        if self.roles:
            self.environments = RoleWorkers(environment, memory_gib)
        elif environment.name:
            self.environments = EnvironmentWorkers(environment, memory_gib)
        self.opponents = Opponents(config, model_path, label)

    def collector(self, components: Components) -> Collector:
        """Return a collector that carries out plans with these workers."""
        host: ConversationRunner | EpisodeRunner | None = None
        prompts = self.config.prompts
        if self.environments is not None:
            sources: dict[int | str, SourceConfig] = {TRAINING: prompts.train, EVALUATION: prompts.test}
            for name, source in test_sources(prompts).items():
                sources[name] = source
            host = ConversationRunner(self.environments, components.tokenizer, sources, prompts.max_tokens)
            if isinstance(self.environments, RoleWorkers):
                encoder = Encoder(components.tokenizer, prompts.max_tokens)
                players = training_players(self.config.environment, self.roles)
                host = EpisodeRunner(
                    self.environments, encoder, sources, players, self.opponents.endpoint, self.opponents
                )
        return Collector(self.pool, self.scorer, components.tokenizer, self.config.rollout, host)

    async def start(self, checkpoint: Path | None, version: int, probe: tuple[int, ...]) -> None:
        """Start learner and engines; return when engines serve the policy.

        After `drop_learners` it starts new ranks, and the engines go on.

        Args:
            checkpoint: Whose policy the learner loads; None: the start model.
            version: The policy's version, above all that were served.
            probe: Token ids on which engines must agree with the learner.

        Raises:
            KrayError: Learner or engines cannot be started.
            Stopped: The run was asked to stop.
        """
        started = time.monotonic()
        # The learner gets its place first, since engines can wait; they load while the learner does.
        await self.stop.unless(self.learners.place())
        self.pool.start()
        rank = (await self.stop.unless(self.learners.start()))[0]
        if rank["rejected_layouts"]:
            logger.info(f"the learner computes {rank['layout']}; not taken: {'; '.join(rank['rejected_layouts'])}")
        if self.opponents.needs_start:
            await self.stop.unless(self._publish_start(probe))
        if checkpoint is not None:
            await self.learners.load(checkpoint / "learner")
        await self.stop.unless(self.restore_opponents(checkpoint, probe))
        self.ready = True
        gap = await self.stop.unless(self.serve(version, probe))
        agree = "" if math.isnan(gap) else f"; engine and learner agree to {gap:.1e} nats"
        logger.info(
            f"{self.pool.serving} of {self.config.rollout.engines} engines and {self.config.train.ranks} learner ranks up "
            f"after {time.monotonic() - started:.0f} s{agree}"
        )

    async def serve(self, version: int, probe: tuple[int, ...]) -> float:
        """Have every engine load and prove the learner's weights.

        Args:
            version: Of the weights.
            probe: Token ids on which engines must agree with the learner.

        Returns:
            The largest gap on the probe in nats; NaN without an engine.
        """
        handed = await self._hand_over()
        # The learner computes them while the engines load.
        logprobs = asyncio.ensure_future(self._probe_logprobs(probe, handed.checksum))
        published = Published(version, handed.weights, handed.checksum, probe, logprobs, handed.joined)
        publishing = asyncio.ensure_future(self.pool.publish(published))
        try:
            await asyncio.wait({logprobs, publishing}, return_when=asyncio.FIRST_EXCEPTION)
            for work in (logprobs, publishing):
                if work.done():
                    # Raises: without the learner's logprobs no engine can prove its weights.
                    work.result()
            return publishing.result()
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)

    async def restore_opponents(self, checkpoint: Path | None, probe: tuple[int, ...]) -> None:
        """Give older versions of the policy, as opponents, what they had at a checkpoint, else the learner's weights.

        Args:
            checkpoint: What the learner has loaded; None: the start model.
            probe: Token ids on which engines must agree with the learner.
        """
        await self.opponents.restore(checkpoint, partial(self._learner_weights, probe))

    async def _publish_start(self, probe: tuple[int, ...]) -> None:
        """Give the weights that the learner began with to the engine of the opponent `start`."""
        await self.opponents.publish(Player(START), await self._learner_weights(probe))

    async def _learner_weights(self, probe: tuple[int, ...]) -> Published:
        gathered, weights = await self.learners.gather_weights()
        return Published(0, weights, gathered.checksum, probe, await self._probe_logprobs(probe))

    async def _hand_over(self) -> HandedOver:
        """Put the learner's weights into the object store, or begin to send them by buckets."""
        if self.broadcasts is not None:
            return await self.broadcasts.begin()
        gathered, weights = await self.learners.gather_weights()
        return HandedOver(weights, gathered.checksum)

    async def _probe_logprobs(self, probe: tuple[int, ...], sent: str | asyncio.Future = "") -> np.ndarray:
        if isinstance(sent, asyncio.Future):
            await asyncio.shield(sent)
        return (await self.learners.logprobs([(probe[:1], probe[1:])]))[0]

    def drop_learners(self) -> None:
        """End the learner ranks, in any state."""
        self.ready = False
        self.learners.kill()

    @property
    def next_version(self) -> int:
        """The first policy version above all that were published."""
        return 0 if self.pool.published is None else self.pool.published.version + 1

    async def close(self) -> None:
        """End all processes, in any state."""
        await self.pool.close()
        if self.broadcasts is not None:
            await self.broadcasts.close()
        self.learners.close()
        self.scorer.close()
        await self.opponents.close()
        if self.environments is not None:
            self.environments.close()


def make_scorer(reward: RewardConfig, verifiers: Iterable[str] = ()) -> Scorer | RemoteScorer | ComposedScorer:
    """Return the scorer of a run: processes on this node or the service that reward.url names, and the judges.

    Args:
        reward: How responses are scored.
        verifiers: Those of the sources of prompts, "" where they have that of `reward`.

    Raises:
        ConfigError: A judge cannot be used.
    """
    used = {reward.verifier, *verifiers}
    functions = reward_functions(reward.functions if FUNCTIONS in used else {})
    # The judges' names never reach the base.
    named = {
        function_key(name): (function.verifier, function.options)
        for name, function in functions.items()
        if function.verifier != JUDGE
    }
    # Imported when a process starts.
    default = next(iter(named), "exact") if reward.verifier in (JUDGE, FUNCTIONS) else reward.verifier
    options = {} if reward.verifier in (JUDGE, FUNCTIONS) else dict(reward.options)
    ranges = Ranges(reward.verifier, read_range(reward.range, "reward.range"))
    base: Scorer | RemoteScorer
    if reward.url:
        key = os.environ.get(reward.key_env, "").strip()
        base = RemoteScorer(reward.url, key, default, options, reward.deadline_s, named, ranges)
    else:
        memory_gib = reward.memory_gib
        base = Scorer(
            default, options, reward.workers, reward.timeout_s, memory_gib=memory_gib, named=named, ranges=ranges
        )
    if not used & {JUDGE, FUNCTIONS}:
        return base
    usage = JudgeUsage()
    try:
        judges = judges_of(reward, used)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return ComposedScorer(
        base, {key: Judge(judge, api_key(judge), usage) for key, judge in judges.items()}, functions, usage
    )
