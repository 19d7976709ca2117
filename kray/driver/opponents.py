"""Players that do not learn: the model that the run began with, on engines of its own, and OpenAI-compatible servers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from kray.config import KrayConfig
from kray.config.players import Player, plays_start, read_players
from kray.config.schema import EnvironmentConfig
from kray.driver.components import engine_spec
from kray.driver.prepare import turn_stops
from kray.environments.endpoint import EndpointPlayer
from kray.records import RolloutTask
from kray.rollout.frozen import FrozenPool
from kray.rollout.outcome import TaskOutcome
from kray.rollout.pool import Pool
from kray.rollout.pool_state import Published


def training_players(environment: EnvironmentConfig, roles: Sequence[str]) -> dict[str, Player]:
    """Return who plays each role in training; roles that the configuration does not name are played by the policy."""
    named = read_players(environment.roles, "environment.roles")
    return {role: named.get(role, Player()) for role in roles}


class Opponents:
    """The opponents of a run, each started when it is first needed."""

    def __init__(self, config: KrayConfig, model_path: str, label: str):
        """Start nothing.

        Args:
            config: The run's configuration.
            model_path: The start model's folder or hub id.
            label: Part of the actors' names.
        """
        self.config, self._model_path, self._label = config, model_path, label
        self._endpoints: dict[Player, EndpointPlayer] = {}
        self._start: FrozenPool | None = None

    @property
    def needs_start(self) -> bool:
        """Whether the start model is an opponent and has not been published."""
        return self._start is None and plays_start(self.config.environment)

    async def publish(self, start: Published) -> None:
        """Make engines for the start model; they start when it first plays, and rest when it does not."""
        rollout = replace(self.config.rollout, engines=1, min_engines=0)
        pool = Pool(rollout, engine_spec(self.config, self._model_path), f"{self._label}-start")
        self._start = FrozenPool(pool, start.version)
        pool.start()
        await pool.publish(start)

    async def generate(self, task: RolloutTask) -> TaskOutcome:
        """Generate a turn of the start model.

        Raises:
            KrayError: Its engine is lost for good, or does not serve in time.
        """
        assert self._start is not None
        return await self._start.generate(task)

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
        if self._start is not None:
            await self._start.close()
