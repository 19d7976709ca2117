"""What a run lets work for it: learner ranks, engines, processes of scorer and environments. Lives in the driver actor."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from pathlib import Path

import numpy as np

from kray.config import KrayConfig, RewardConfig, SourceConfig
from kray.driver.components import Components, engine_spec
from kray.driver.stop import Stop
from kray.environments.workers import EnvironmentWorkers
from kray.prompts.sources import test_sources
from kray.rewards.remote import RemoteScorer
from kray.rewards.scorer import Scorer
from kray.rollout.collector import EVALUATION, TRAINING, Collector
from kray.rollout.conversation import ConversationRunner
from kray.rollout.pool import Pool
from kray.rollout.pool_state import Published
from kray.train.learner_group import LearnerGroup

logger = logging.getLogger(__name__)


class Workers:
    """workers = Workers(...); await workers.start(checkpoint); await workers.serve(0, probe); ...; await workers.close()"""

    def __init__(self, config: KrayConfig, model_path: str, label: str, stop: Stop):
        """Starts nothing. label: part of the actors' names."""
        self.config, self.stop = config, stop
        self.ready = False  # the learner holds the policy
        self.learners = LearnerGroup(
            config.train,
            config.model.dtype,
            model_path,
            config.run.steps,
            config.run.seed,
            config.rollout.temperature,
            placement_timeout_s=config.rollout.start_timeout_s,
            lora=config.model.lora,
            label=label,
        )
        self.restarts = {"learner": 0, "driver": 0}
        self.pool = Pool(config.rollout, engine_spec(config, model_path), label)
        self.scorer = make_scorer(config.reward)
        self.stage = (
            EnvironmentWorkers(config.environment, config.reward.memory_gib) if config.environment.name else None
        )

    def collector(self, components: Components) -> Collector:
        """Carries plans out with this workers."""
        host, prompts = None, self.config.prompts
        if self.stage is not None:
            sources: dict[int | str, SourceConfig] = {TRAINING: prompts.train, EVALUATION: prompts.test}
            for name, source in test_sources(prompts).items():
                sources[name] = source
            host = ConversationRunner(self.stage, components.tokenizer, sources, prompts.max_tokens)
        return Collector(self.pool, self.scorer, components.tokenizer, self.config.rollout, host)

    async def start(self, checkpoint: Path | None, version: int, probe: tuple[int, ...]) -> None:
        """Returns when the learner holds the checkpoint's policy and engines serve it. Raises KrayError, Stopped.

        After `drop_learners` it starts new ranks; the engines go on. version: above all that were served.
        """
        started = time.monotonic()
        await self.stop.unless(self.learners.place())  # before the engines: they are the part that can wait
        self.pool.start()  # engines load while the learner does
        told = (await self.stop.unless(self.learners.start()))[0]
        if told["rejected_layouts"]:
            logger.info(f"the learner computes {told['layout']}; not taken: {'; '.join(told['rejected_layouts'])}")
        if checkpoint is not None:
            await self.learners.load(checkpoint / "learner")
        self.ready = True
        gap = await self.stop.unless(self.serve(version, probe))
        agree = "" if math.isnan(gap) else f"; engine and learner agree to {gap:.1e} nats"
        logger.info(
            f"{self.pool.serving} of {self.config.rollout.engines} engines and {self.config.train.ranks} learner ranks up "
            f"after {time.monotonic() - started:.0f} s{agree}"
        )

    async def serve(self, version: int, probe: tuple[int, ...]) -> float:
        """Every live engine proves the learner's weights; the largest gap on the probe in nats, NaN without an engine."""
        gathered, weights = await self.learners.gather_weights()
        thinking = asyncio.ensure_future(self._think_of(probe))  # while the engines load
        published = Published(version, weights, gathered.checksum, probe, thinking)
        publishing = asyncio.ensure_future(self.pool.publish(published))
        try:
            await asyncio.wait({thinking, publishing}, return_when=asyncio.FIRST_EXCEPTION)
            for work in (thinking, publishing):
                if work.done():
                    work.result()  # raises: without the learner's answer no engine can prove its weights
            return publishing.result()
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)

    async def _think_of(self, probe: tuple[int, ...]) -> np.ndarray:
        return (await self.learners.logprobs([(probe[:1], probe[1:])]))[0]

    def drop_learners(self) -> None:
        """Ends the ranks, in any state."""
        self.ready = False
        self.learners.kill()

    @property
    def next_version(self) -> int:
        """A policy version above all that were published."""
        return 0 if self.pool.published is None else self.pool.published.version + 1

    async def close(self) -> None:
        """Ends all of it, in any state."""
        await self.pool.close()
        self.learners.close()
        self.scorer.close()
        if self.stage is not None:
            self.stage.close()


def make_scorer(reward: RewardConfig) -> Scorer | RemoteScorer:
    """What judges the run's answers: processes here, or the service that reward.url names."""
    options = dict(reward.options)
    if reward.url:
        key = os.environ.get(reward.key_env, "").strip()
        return RemoteScorer(reward.url, key, reward.verifier, options, reward.deadline_s)
    return Scorer(reward.verifier, options, reward.workers, reward.timeout_s, memory_gib=reward.memory_gib)
