"""Players that do not learn: versions of the policy, each on an engine of its own, and OpenAI-compatible servers.

The opponent `start` keeps the weights that the run began with. `past` with `every: K` has, after s completed steps, those that
the policy had after the newest step before s that is a multiple of K, and at the beginning those that the run began with. It
changes between two steps and never by the clock; checkpoints hold its weights, so that a resumed run goes on with them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray

from kray.config import KrayConfig
from kray.config.players import PAST, START, Player, frozen_players, read_players
from kray.config.schema import EnvironmentConfig
from kray.driver.components import engine_spec
from kray.driver.past_policies import HeldPolicy, read, settled
from kray.driver.prepare import turn_stops
from kray.environments.endpoint import EndpointPlayer
from kray.errors import KrayError
from kray.records import RolloutTask
from kray.rollout.frozen import FrozenPool
from kray.rollout.outcome import TaskOutcome
from kray.rollout.pool import Pool
from kray.rollout.pool_state import Published
from kray.train.checkpoints import read_state

logger = logging.getLogger(__name__)


def training_players(environment: EnvironmentConfig, roles: Sequence[str]) -> dict[str, Player]:
    """Return who plays each role in training; roles that the configuration does not name are played by the policy."""
    named = read_players(environment.roles, "environment.roles")
    return {role: named.get(role, Player()) for role in roles}


class Opponents:
    """The opponents of a run, each started when it is first needed.

    Attributes:
        past: Those that are older versions of the policy.
        held: Opponent of these -> what it plays with.
    """

    def __init__(self, config: KrayConfig, model_path: str, label: str):
        """Start nothing.

        Args:
            config: The run's configuration.
            model_path: The start model's folder or hub id.
            label: Part of the actors' names.
        """
        self.config, self._model_path, self._label = config, model_path, label
        players = frozen_players(config.environment)
        self.past = [player for player in players if player.name == PAST]
        self.held: dict[Player, HeldPolicy] = {}
        self._endpoints: dict[Player, EndpointPlayer] = {}
        self._frozen = {player: FrozenPool(self._pool(player)) for player in players}

    @property
    def needs_start(self) -> bool:
        """Whether the start model is an opponent and has not been published."""
        start = self._frozen.get(Player(START))
        return start is not None and start.pool.published is None

    async def publish(self, player: Player, weights: Published) -> None:
        """Give weights to the engine of an opponent, which starts when it first plays and rests when it does not.

        Raises:
            KrayError: Its engine is lost for good, or does not serve them in time.
        """
        with _naming(player):
            await self._frozen[player].publish(weights)

    async def hold(self, player: Player, policy: HeldPolicy) -> None:
        """Let an opponent that is an older version of the policy play with this one; see `publish`."""
        self.held[player] = policy
        await self.publish(player, policy.published)

    async def restore(self, checkpoint: Path | None, learner_weights: Callable[[], Awaitable[Published]]) -> None:
        """Let older versions of the policy play with what they had at a checkpoint, else with the learner's weights.

        Args:
            checkpoint: What the learner has loaded; None: the start model.
            learner_weights: Returns the learner's weights.

        Raises:
            StorageError: A policy in the checkpoint cannot be read.
            KrayError: See `publish`.
        """
        for player in self.past:
            held, step = None, 0
            if checkpoint is not None:
                held, step = await asyncio.to_thread(read, checkpoint, player), int(read_state(checkpoint)["step"])
            if held is not None:
                published = replace(held.published, weights=ray.put(held.published.weights))
                await self.hold(player, replace(held, published=published))
                continue
            if checkpoint is not None:
                logger.info(f"note: {checkpoint} holds no opponent {player}, which begins as the policy there")
            await self.hold(player, HeldPolicy(step, await learner_weights()))

    async def refresh(self, step: int, published: Published | None) -> None:
        """Refresh the older versions of the policy that are due, after an update.

        Args:
            step: Completed steps before the update.
            published: The policy before the update.

        Raises:
            KrayError: See `publish`.
        """
        for player in self.past:
            if step % player.every == 0 and self.held[player].step != step:
                assert published is not None
                await self.hold(player, HeldPolicy(step, settled(published)))

    async def generate(self, player: Player, task: RolloutTask) -> TaskOutcome:
        """Generate a turn of a version of the policy that does not learn.

        Raises:
            KrayError: Its engine is lost for good, or does not serve in time.
        """
        with _naming(player):
            return await self._frozen[player].generate(task)

    def endpoint(self, player: Player) -> EndpointPlayer:
        """Return the client of a player that is an endpoint."""
        if player not in self._endpoints:
            assert player.endpoint is not None
            key = os.environ.get(player.endpoint.key_env, "").strip()
            self._endpoints[player] = EndpointPlayer(player.endpoint, key, turn_stops(self.config))
        return self._endpoints[player]

    async def close(self) -> None:
        """End engines and connections."""
        for endpoint in self._endpoints.values():
            endpoint.close()
        for frozen in self._frozen.values():
            await frozen.close()

    def _pool(self, player: Player) -> Pool:
        rollout = replace(self.config.rollout, engines=1, min_engines=0)
        return Pool(rollout, engine_spec(self.config, self._model_path), f"{self._label}-{player}")


@contextmanager
def _naming(player: Player) -> Iterator[None]:
    """Put the opponent's name before the message of an error."""
    try:
        yield
    except KrayError as error:
        raise type(error)(f"opponent {player}: {error}") from error
