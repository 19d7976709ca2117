"""The processes of a run: learner ranks, engines, scorer and environments. Held by the driver actor."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kray.config import KrayConfig, RewardConfig, SourceConfig
from kray.config.actor_options import variables_of
from kray.config.devices import dtype_of
from kray.config.memory import ELEMENT_BYTES
from kray.config.players import START, Player
from kray.config.threads import ALL_CORES
from kray.driver.broadcasts import Broadcasts, HandedOver
from kray.driver.colocation import Colocation
from kray.driver.components import Components, engine_spec
from kray.driver.model_on_nodes import look_everywhere
from kray.driver.opponents import Opponents, training_players
from kray.driver.probe import Probe
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
from kray.rollout.adapters import adapters_of
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
        broadcasts: Sends weights by buckets; None: they go through the object store in one piece.
        scorer: Computes rewards.
        environments: Processes of the environment; None without one.
        roles: Of the environment; () for one without.
        opponents: Players that do not learn.
        colocation: Turns of engines and learner; None where they do not share devices.
        probe: By which engines prove their weights.
        adapters: LoRA adapters that engines take instead of whole weights; None: they take whole weights.
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
        self.config, self.stop, self.model_path = config, stop, model_path
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
        self.probe = Probe(self.learners, dtype_of(config), config.run.seed)
        self.restarts = {"learner": 0, "driver": 0}
        self.colocation = Colocation(config.rollout, self.learners) if config.rollout.colocate else None
        self.adapters, self._update_bytes = adapters_of(config), 0
        self.pool = self._make_pool(model_path, label)
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

    @property
    def _share_cores(self) -> bool:
        """Whether engines and ranks each compute with all cores of their node."""
        rollout, train = self.config.rollout, self.config.train
        on_cpu = not rollout.gpus_per_engine and not train.gpus_per_rank
        threads = (rollout.threads_per_engine, train.threads_per_rank)
        return on_cpu and self.colocation is None and threads == (ALL_CORES, ALL_CORES)

    def _make_pool(self, model_path: str, label: str) -> Pool:
        rollout, spec = self.config.rollout, engine_spec(self.config, model_path, self.adapters)
        if self.colocation is None:
            return Pool(rollout, spec, label)
        self.colocation.pool = Pool(rollout, replace(spec, sleeps=True), label, self.colocation.sharing)
        return self.colocation.pool

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

    async def _look_at_model(self) -> None:
        rollout = self.config.rollout
        engine = {"CPU": rollout.cpus_per_engine, "GPU": rollout.gpus_per_engine}
        limit_s, env = self.config.train.timeout_s, variables_of(self.config.run.env)
        await look_everywhere(self.model_path, [self.learners.bundle, engine], limit_s, env)

    async def start(self, checkpoint: Path | None, version: int, probe: tuple[int, ...]) -> None:
        """Start learner and engines; return when engines serve the policy.

        After `drop_learners` it starts new ranks, and the engines go on.

        Args:
            checkpoint: Whose policy the learner loads; None: the start model.
            version: The policy's version, above all that were served.
            probe: Token ids on which engines must agree with the learner; see `Probe.settle`.

        Raises:
            KrayError: Learner or engines cannot be started.
            Stopped: The run was asked to stop.
        """
        started = time.monotonic()
        # The learner gets its place first, since engines can wait; they load while the learner does.
        if self.colocation is not None:
            await self.stop.unless(self.colocation.learners_turn())
        await self.stop.unless(self.learners.place())
        await self.stop.unless(self._look_at_model())
        if self.colocation is None:
            self.pool.start()
        rank = (await self.stop.unless(self.learners.start()))[0]
        if self.colocation is not None:
            self.colocation.learner_started()
        if rank["rejected_layouts"]:
            logger.info(f"the learner computes {rank['layout']}; not taken: {'; '.join(rank['rejected_layouts'])}")
        await self.stop.unless(self.probe.settle(probe))
        if self.opponents.needs_start:
            await self.stop.unless(self._publish_start())
        if checkpoint is not None:
            await self.learners.load(checkpoint / "learner")
        await self.stop.unless(self.restore_opponents(checkpoint))
        self.ready = True
        gap = await self.stop.unless(self.serve(version))
        self._log_adapters(rank)
        agree = "" if math.isnan(gap) else f"; engine and learner agree to {gap:.1e} nats"
        logger.info(
            f"{self.pool.serving} of {self.config.rollout.engines} engines and {self.config.train.ranks} learner ranks up "
            f"after {time.monotonic() - started:.0f} s{agree}"
        )

    def _log_adapters(self, rank: dict[str, Any]) -> None:
        """Say what an update of adapters weighs.

        rank: `Learner.describe` of a rank.
        """
        if self.adapters is not None:
            whole = (rank["parameters"] - rank["trained"]) * ELEMENT_BYTES[dtype_of(self.config)]
            sent = f"{self._update_bytes / 1e6:,.2f} MB of adapters; whole weights would be {whole / 1e6:,.1f} MB"
            logger.info(f"an update of the engines sends {sent}")

    async def serve(self, version: int) -> float:
        """Have every engine load and prove the learner's weights.

        Args:
            version: Of the weights.

        Returns:
            The largest gap on the probe in nats; NaN without an engine.
        """
        probe = self.probe
        # A learner and engines that compute with all cores of a node slow each other down, so they take turns.
        early = await probe.logprobs(probe.tokens) if self._share_cores else None
        handed = await self._hand_over()
        if self.colocation is not None:
            expected = await probe.logprobs(probe.tokens)
            published = Published(version, handed.weights, handed.checksum, probe.tokens, expected, probe.start)
            return await self.colocation.hand_over(published)
        # Elsewhere the learner computes them while the engines load.
        logprobs = asyncio.ensure_future(self._logprobs_after(handed.checksum, early))
        published = Published(
            version, handed.weights, handed.checksum, probe.tokens, logprobs, probe.start, handed.joined
        )
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

    async def _hand_over(self) -> HandedOver:
        """Put the learner's weights into the object store, or begin to send them by buckets."""
        if self.broadcasts is not None:
            return await self.broadcasts.begin()
        gathered, weights = await self.learners.gather_weights(adapters=self.adapters is not None)
        self._update_bytes = gathered.nbytes
        return HandedOver(weights, gathered.checksum)

    async def _logprobs_after(self, sent: str | asyncio.Future, early: np.ndarray | None) -> np.ndarray:
        """Return the learner's logprobs of the probe: those computed before, else when it has sent its weights."""
        if early is not None:
            return early
        if isinstance(sent, asyncio.Future):
            await asyncio.shield(sent)
        return await self.probe.logprobs(self.probe.tokens)

    async def restore_opponents(self, checkpoint: Path | None) -> None:
        """Give older versions of the policy, as opponents, what they had at a checkpoint, else the learner's weights.

        Args:
            checkpoint: What the learner has loaded; None: the start model.
        """
        await self.opponents.restore(checkpoint, self._learner_weights)

    async def _publish_start(self) -> None:
        """Give the weights that the learner began with to the engine of the opponent `start`."""
        await self.opponents.publish(Player(START), await self._learner_weights())

    async def _learner_weights(self) -> Published:
        gathered, weights = await self.learners.gather_weights()
        tokens = self.probe.tokens
        return Published(0, weights, gathered.checksum, tokens, await self.probe.logprobs(tokens), self.probe.start)

    async def weights_checksum(self) -> str:
        """Return the checksum of the learner's whole weights, which are published unless engines take adapters."""
        if self.adapters is None and self.pool.published is not None:
            checksum = self.pool.published.checksum
            return checksum if isinstance(checksum, str) else await asyncio.shield(checksum)
        return (await self.learners.gather_weights())[0].checksum

    def drop_learners(self) -> None:
        """End the learner ranks, in any state."""
        self.ready = False
        self.learners.kill()
        if self.colocation is not None:
            self.colocation.learner_lost()

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
