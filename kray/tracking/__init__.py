"""The record of a run: metrics, tables, figures.

The only package that knows MLflow; MLflow is loaded when a Tracker opens.
"""

from kray.tracking.figures import budget_histogram, budgets_against_beliefs, learning_curve
from kray.tracking.metrics import METRICS, describe
from kray.tracking.run import Tracker, prompts_digest
from kray.tracking.store import locate, log_model

__all__ = [
    "METRICS",
    "Tracker",
    "budget_histogram",
    "budgets_against_beliefs",
    "describe",
    "learning_curve",
    "locate",
    "log_model",
    "prompts_digest",
]
