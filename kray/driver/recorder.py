"""Records steps: metrics, tables and figures for the tracker, means for the summary."""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kray.config import KrayConfig
from kray.driver.components import Components
from kray.driver.flat_rewards import FlatRewards
from kray.driver.state import RunState
from kray.driver.step_metrics import step_record
from kray.driver.tables import sample_rows, transition_rows
from kray.environments.workers import ENVIRONMENT
from kray.metrics import (
    ENVIRONMENT_FAILED,
    THROUGHPUT_ROLLOUTS_PER_S,
    THROUGHPUT_TOKENS_PER_S,
    TIMING_S_STEP,
    timing,
)
from kray.monitor.status import RECENT_STEPS
from kray.planner.metrics import STATUSES, CalibrationTally, status, step_metrics, transition_matrix
from kray.prompts.tokenize import as_read
from kray.records import Allocation, derive_seed
from kray.rollout.collected import CollectedStep
from kray.tracking import Tracker
from kray.tracking.figures import budget_histogram, budgets_against_beliefs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Mean:
    """A running mean of finite numbers; others are left out, so that one step without a figure hides no other."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Add a number."""
        if math.isfinite(value):
            self.total += value
            self.count += 1

    @property
    def value(self) -> float:
        """The mean; NaN where nothing finite was added."""
        return self.total / self.count if self.count else math.nan


class StepRecorder:
    """Records the steps of a training.

    What `to_dict` holds survives in checkpoints; the rest begins anew with every start.

    Attributes:
        steps: Metrics of the newest steps since this start.
        calibration: Tally of the predictions of the epoch.
        budgets: (M,) int64 rollouts of the newest step's prompts.
        transitions: (5, 5) int64 status changes since their last table.
    """

    def __init__(self, config: KrayConfig, components: Components, tracker: Tracker):
        self.config, self.components, self.tracker = config, components, tracker
        self.steps: deque[dict[str, float]] = deque(maxlen=RECENT_STEPS)
        self._means: dict[str, Mean] = {}
        self._flat = FlatRewards(config)
        self.calibration = CalibrationTally()
        self.budgets = np.zeros(0, dtype=np.int64)
        self.transitions = np.zeros((len(STATUSES), len(STATUSES)), dtype=np.int64)

    def step(
        self, number: int, collected: CollectedStep, update: dict[str, float], times: dict[str, float]
    ) -> dict[str, float]:
        """Record a step.

        Args:
            number: Of the step, counted from 1.
            collected: Its plan and rollouts.
            update: Metrics that are known beside the rollouts.
            times: Seconds by part, without those that `collected` holds.

        Returns:
            All metrics of the step.
        """
        allocation, previous = collected.allocation, collected.previous_status
        successes, trials = collected.labels()
        metrics = step_record(collected, update) | step_metrics(allocation, successes, trials, previous)
        if self.config.environment.name:
            lost = [failure.rollouts for failure in collected.failures if failure.why.startswith(ENVIRONMENT)]
            metrics[ENVIRONMENT_FAILED] = float(sum(lost))
        metrics |= collected.plan_metrics | self._calibrate(number, allocation, successes, trials)
        times = times | {"plan": collected.plan_s, "generate": collected.generate_s, "reward": collected.reward_s}
        metrics |= {timing(name): value for name, value in times.items()}
        metrics |= {
            THROUGHPUT_ROLLOUTS_PER_S: float(trials.sum()) / times["step"],
            THROUGHPUT_TOKENS_PER_S: collected.tokens / times["step"],
        }
        self.steps.append(metrics)
        self.note(metrics)
        self.budgets = allocation.budgets
        self.transitions += transition_matrix(previous, status(successes, trials))
        self.tracker.log_step(number, metrics)
        if sentence := self._flat.step(collected):
            logger.warning(f"step {number}: {sentence}")
        if number % self.config.track.every == 0:
            self._log_tables(number, collected, successes, trials, times)
        return metrics

    def note(self, metrics: dict[str, float]) -> None:
        """Add a step's metrics to their means."""
        for name, value in metrics.items():
            self._means.setdefault(name, Mean()).add(value)

    def mean(self, name: str) -> float:
        """Return the mean of a metric over the steps since this start in which it was finite; NaN without any."""
        return self._means.get(name, Mean()).value

    def left_s(self, steps: int) -> float:
        """Return the seconds that so many more steps will take, by the median of the newest ones."""
        known = [s for metrics in self.steps if math.isfinite(s := metrics[TIMING_S_STEP])]
        return steps * float(np.median(known)) if known else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold, under the names of RunState."""
        return {"calibration": self.calibration.to_dict(), "transitions": self.transitions.tolist()}

    def load(self, state: RunState) -> None:
        """Take over what a state holds; a new one and older ones hold no transitions."""
        if state.calibration:
            self.calibration.load_dict(state.calibration)
        if state.transitions:
            self.transitions = np.array(state.transitions, dtype=np.int64)

    def _calibrate(
        self, number: int, allocation: Allocation, successes: np.ndarray, trials: np.ndarray
    ) -> dict[str, float]:
        """Tally how well the beliefs predicted the step; return the calibration when an epoch ends."""
        self.calibration.add(allocation.expected_success, successes, trials)
        if self.components.sampler.epoch(number) == self.components.sampler.epoch(number - 1):
            return {}
        found = self.calibration.metrics()
        self.calibration.clear()
        return found

    def _log_tables(
        self, number: int, collected: CollectedStep, successes: np.ndarray, trials: np.ndarray, times: dict[str, float]
    ) -> None:
        """Log the table of rollouts, traces of some of them, the figures, and how prompts have changed their status."""
        allocation, config = collected.allocation, self.config
        seed = derive_seed(config.run.seed, number, "samples")
        most = max(config.track.samples, config.track.traces)
        read = partial(as_read, tokenizer=self.components.tokenizer)
        rows = sample_rows(collected, most, seed, read)
        self.tracker.log_table(number, rows[: config.track.samples])
        if traced := rows[: config.track.traces]:
            ago_s = times["update"] + times["sync"]
            self.tracker.log_traces(number, traced, times["generate"], times["reward"], ago_s)
        self.tracker.log_table(number, transition_rows(self.transitions), "transitions")
        self.transitions[:] = 0
        observed = np.divide(successes, trials, out=np.full(len(trials), np.nan), where=trials > 0)
        budgets, beliefs = allocation.budgets, allocation.expected_success

        def against() -> Figure:
            return budgets_against_beliefs(beliefs, budgets, observed)

        self.tracker.log_figure(number, "budgets_against_beliefs", against)
        self.tracker.log_figure(number, "budgets", lambda: budget_histogram(budgets, config.plan.upper))
