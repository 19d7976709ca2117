"""How rollout tasks end, as the pool tells whoever submitted them."""

from __future__ import annotations

from dataclasses import dataclass

from kray.records import Rollout, RolloutTask


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rollout task ended: with rollouts, or with the reason why there are none."""

    task: RolloutTask
    rollouts: list[Rollout]
    failure: str = ""
