"""With what weights by buckets (rollout.sync_bucket_mib) cannot be combined. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kray.config.players import PAST, frozen_players
from kray.config.schema import EnvironmentConfig, KrayConfig
from kray.errors import ConfigError

KEY = "rollout.sync_bucket_mib"


def bucket_problems(config: KrayConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (keys, problem) for each setting that buckets exclude."""
    rollout = config.rollout
    if not rollout.sync_bucket_mib:
        return
    given = f"{KEY} {rollout.sync_bucket_mib}"
    if rollout.colocate:
        text = (
            f"{given} has engines load while the learner sends, and rollout.colocate has them take turns: use 0 with it"
        )
        yield (KEY, "rollout.colocate"), text
    if rollout.lora == "adapter":
        text = f"{given} sends whole weights, and with rollout.lora adapter an update is a few MB of adapters: use 0 with it"
        yield (KEY, "rollout.lora"), text
    if _plays_past(config.environment):
        yield (KEY,), f"{given}: the opponent past keeps whole weights of earlier versions: use 0 with it"


def _plays_past(environment: EnvironmentConfig) -> bool:
    try:
        return any(player.name == PAST for player in frozen_players(environment))
    except ConfigError:
        # `player_problems` names it.
        return False
