"""Beliefs about the success rate of each prompt in roles other than the one that the planner plans by.

The planner's item is the prompt: its belief is about the first role that learns, and decides budgets. As a baseline, that
belief would make an edge of one role (moving first) look like skill, so every other role that learns has beliefs of its own,
with a prior, discounts and a calibration of its own, under the same settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kray.plan_modes import PlanConfig
from kray.planner.beliefs import Beliefs
from kray.planner.calibration import Calibration
from kray.planner.settings import make_beliefs


class RoleBeliefs:
    """Beliefs by role and prompt id.

    Attributes:
        beliefs: Role -> its beliefs.
    """

    def __init__(self, plan: PlanConfig):
        """Make beliefs about nothing.

        Args:
            plan: The configuration's `plan` section.
        """
        self.plan = plan
        self.beliefs: dict[str, Beliefs] = {}
        self._calibrations: dict[str, Calibration] = {}
        self._visits: dict[str, int] = {}

    def visit(
        self, role: str, prompt_ids: Sequence[str], rewards: Sequence[np.ndarray], labels: Sequence[str] | None = None
    ) -> np.ndarray:
        """Return what was believed of M prompts before these rewards, then add the rewards.

        Args:
            role: A role.
            prompt_ids: M different ids.
            rewards: M arrays (N,) float64 in [0, 1], each not empty.
            labels: M names of the groups whose prior each prompt has (plan.prior_by).

        Returns:
            (M, 2) alpha and beta, calibrated where plan.calibrate is set.
        """
        beliefs = self.beliefs.setdefault(role, make_beliefs(self.plan))
        calibration = self._calibrations.setdefault(role, Calibration())
        visits = self._visits.get(role, 0)
        if visits % self.plan.refit_every == 0 or visits < self.plan.refit_every:
            beliefs.refit_prior()
        beliefs.begin_visit(prompt_ids, labels)
        alpha, beta = beliefs.posterior(prompt_ids)
        baseline = np.stack(calibration.apply(alpha, beta) if self.plan.calibrate else (alpha, beta), axis=1)
        for prompt_id, given in zip(prompt_ids, rewards, strict=True):
            beliefs.observe(prompt_id, given)
        sums = np.array([[given.sum(), (given**2).sum(), len(given)] for given in rewards]).reshape(-1, 3)
        calibration.add(alpha, beta, *sums.T)
        self._visits[role] = visits + 1
        return baseline

    def to_dict(self) -> dict[str, Any]:
        """Return what has been learned, for a checkpoint."""
        return {
            role: {
                "beliefs": beliefs.to_dict(),
                "calibration": self._calibrations[role].to_dict(),
                "visits": self._visits[role],
            }
            for role, beliefs in self.beliefs.items()
        }

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `to_dict` returned; settings are those of the configuration.

        Raises:
            ValueError, KeyError: The state is damaged.
        """
        self.beliefs, self._calibrations, self._visits = {}, {}, {}
        for role, kept in state.items():
            beliefs = Beliefs.from_dict(kept["beliefs"])
            beliefs.adopt(make_beliefs(self.plan))
            self.beliefs[role], self._visits[role] = beliefs, int(kept["visits"])
            self._calibrations[role] = Calibration()
            self._calibrations[role].load_dict(kept["calibration"])
