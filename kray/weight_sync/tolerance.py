"""How far an engine's log-probabilities of the probe may be from the learner's. Pure.

The rule, in nats, mean absolute difference over the probe's tokens:
- At most TOLERANCE of the dtype, or rollout.probe_tolerance where that is set; then this is the whole rule.
- An engine is calibrated with the start model, which it reads from its folder as the learner does: the difference there is
  its own rounding. Later differences may be MARGIN times as large, at least FLOOR of the dtype. The allowance grows with
  the size of the learner's log-probabilities of the probe: rounding grows with the logits, and training makes them larger.
  An engine beyond it is started again; if the new process differs as much, it serves with a warning (engine_supervisor.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Nats. What any engine may differ by.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
# Nats. What an engine may differ by however little it rounds with the start model: in float32 the differences of two
# libraries grow by more than their logits, and a probe of 64 tokens measures an engine's rounding roughly.
FLOOR = {"float32": 1e-4, "bfloat16": 0.01}
# Allowed difference as a multiple of that with the start model. In six runs in float32 of up to 60 steps the difference grew
# to at most 1.7 times that of the first step; a good engine that is ended costs more than a small fault that is found later.
MARGIN = 3.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is known of an engine's own rounding.

    Attributes:
        gap: Mean absolute difference to the learner with the start model, nats.
        size: Mean absolute log-probability of the probe by the learner's start model, nats.
    """

    gap: float
    size: float

    @staticmethod
    def of(engine: np.ndarray, learner: np.ndarray) -> Calibration:
        """Compare (P - 1,) log-probabilities of the probe, both with the start model."""
        return Calibration(mean_gap(engine, learner), float(np.abs(learner).mean()))

    def limit(self, dtype: str, learner: np.ndarray) -> float:
        """Return the largest allowed difference in nats.

        Args:
            dtype: Compute dtype.
            learner: (P - 1,) the learner's log-probabilities of the probe with the weights that are proved.
        """
        growth = max(1.0, float(np.abs(learner).mean()) / self.size) if self.size else 1.0
        return min(TOLERANCE[dtype], max(FLOOR[dtype], MARGIN * self.gap * growth))


def mean_gap(engine: np.ndarray, learner: np.ndarray) -> float:
    """Return the mean absolute difference in nats; NaN where one is not a number."""
    return float(np.abs(engine.astype(np.float64) - learner).mean())
