"""Gives engines and learner ranks that share devices their turns (rollout.colocate); kray/rollout/sharing.py has the rules.

A step: engines generate and go to sleep; the learner's state comes to the device; the learner updates, gathers its weights
into main memory and computes the log-probabilities of the probe; its state leaves; engines take memory for weights, load the
new ones, take memory for keys and values, and prove the weights. The proof needs keys and values, and new weights come through
main memory, so that engines and learner never need the device at once.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from kray.config.schema import RolloutConfig
from kray.rollout.pool import Pool
from kray.rollout.pool_state import Published
from kray.rollout.sharing import Phase, Place, Sharing, Turns
from kray.train.learner_group import GPU_SHARE, LearnerGroup

logger = logging.getLogger(__name__)


class Colocation:
    """Engines and learner ranks on the same devices.

    Attributes:
        turns: Whose turn it is.
        sharing: For the pool of the engines.
        pool: The engines; set before the first turn.
    """

    def __init__(self, rollout: RolloutConfig, learners: LearnerGroup):
        """Have the ranks wait for their turn whenever they are used.

        Args:
            rollout: The run's rollout settings.
            learners: The ranks, which have not been placed.
        """
        self.rollout, self.learners = rollout, learners
        self.turns = Turns()
        self.sharing = Sharing(self.turns, self._options)
        self.pool: Pool
        self._told = False
        learners.share(rollout.cpus_per_engine, self.learners_turn)

    async def learners_turn(self) -> None:
        """Have engines sleep and the learner's state on the device, as far as there is a learner; at once where that is so.

        Raises:
            KrayError: No engine is left, or engines do not go to sleep in time.
            InfrastructureError: A rank was lost.
        """
        turns = self.turns
        if turns.may_start:
            turns.request_learner()
        if turns.phase is Phase.SLEEP:
            await self.pool.rest()
            turns.engines_asleep()
        if turns.phase is Phase.LEAVE:
            # The hand-over was given up.
            turns.learner_stays()
        if turns.phase is Phase.ENTER and turns.learner is not Place.NOWHERE:
            await self.learners.move("enter_device")
            turns.learner_entered()

    def learner_started(self) -> None:
        """Record that ranks have started; their state is on the device."""
        self.turns.learner_entered()

    def learner_lost(self) -> None:
        """Record that the ranks are gone."""
        self.turns.learner_lost()

    async def hand_over(self, published: Published) -> float:
        """Have the learner's state leave and engines serve the weights; see `Pool.publish`.

        Args:
            published: The weights, with the learner's log-probabilities of the probe.
        """
        self.turns.learner_leaves()
        left = await self.learners.move("leave_device")
        # Without a pause: engines that wake must find these weights.
        self.turns.learner_left()
        self.pool.start()
        self._tell(max(left))
        gap = await self.pool.publish(published)
        self.turns.engines_serve()
        return gap

    def _tell(self, left: int) -> None:
        if not self._told:
            kept = "" if self.rollout.gpus_per_engine else "; vLLM cannot sleep on CPU, so an engine keeps its memory"
            logger.info(
                f"engines and learner take turns: {left / 2**30:.2f} GiB of a rank are in main memory meanwhile{kept}"
            )
        self._told = True

    def _options(self, name: str) -> dict[str, Any]:
        """Return the options that place an engine's actor beside its rank."""
        assert self.learners.placement is not None
        beside = PlacementGroupSchedulingStrategy(
            self.learners.placement, placement_group_bundle_index=int(name.rpartition("-")[2])
        )
        return {"num_gpus": self.rollout.gpus_per_engine * GPU_SHARE, "scheduling_strategy": beside}
