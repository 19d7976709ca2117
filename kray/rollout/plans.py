"""What a collector asks of a plan, and the plan of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from kray.records import Allocation


class Plan(Protocol):
    """Which rollouts to generate, decided bit by bit as labels come back; kray.planner.step_plan.StepPlan is one."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to generate and nothing is in flight."""

    def room(self, free: int | None = None) -> int | None:
        """Return how many rollouts `take` may name now, None for any number."""

    def take(self, room: int | None = None) -> list[tuple[str, int]]:
        """Return (prompt id, rollouts) to generate now; they are in flight from then on."""

    def observe(self, prompt_id: str, rewards: list[float], tokens: float | None = None) -> None:
        """Take the rewards of a prompt's rollouts that came back, and their sampled tokens."""

    def lost(self, prompt_id: str, rollouts: int = 1) -> None:
        """Take that rollouts of a prompt will not come back."""

    def allocation(self) -> Allocation:
        """Return the plan as it was carried out; only when it is done."""


class FixedPlan:
    """The same number of rollouts of each prompt, all at once."""

    def __init__(self, prompt_ids: Sequence[str], rollouts: int):
        self._prompt_ids, self._rollouts = list(prompt_ids), rollouts
        self._to_take = [(prompt_id, rollouts) for prompt_id in prompt_ids] if rollouts else []
        self._in_flight = 0

    @property
    def done(self) -> bool:
        """Whether all rollouts have come back or were lost."""
        return not self._to_take and not self._in_flight

    def room(self, free: int | None = None) -> int | None:
        """Return what is free: the plan sets no limit."""
        return free

    def take(self, room: int | None = None) -> list[tuple[str, int]]:
        """Return all rollouts at the first call, nothing later."""
        taken, self._to_take = self._to_take, []
        self._in_flight += sum(rollouts for _, rollouts in taken)
        return taken

    def observe(self, prompt_id: str, rewards: list[float], tokens: float | None = None) -> None:
        """Take rollouts that came back."""
        self._in_flight -= len(rewards)

    def lost(self, prompt_id: str, rollouts: int = 1) -> None:
        """Take rollouts that will not come back."""
        self._in_flight -= rollouts

    def allocation(self) -> Allocation:
        """Return the same budget for each prompt, without expectations."""
        budgets = np.full(len(self._prompt_ids), self._rollouts, dtype=np.int64)
        unknown = np.full(len(budgets), np.nan)
        return Allocation(self._prompt_ids, budgets, budgets.astype(np.float64), unknown, unknown)
