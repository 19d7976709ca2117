"""The record of a run: metrics, tables, figures.

The only package that imports MLflow, which is loaded when a Tracker opens.
"""

from kray.metrics import METRICS
from kray.tracking.figures import budget_histogram, budgets_against_beliefs, learning_curve
from kray.tracking.mlflow_store import end_run, log_model
from kray.tracking.store import locate
from kray.tracking.tracker import Tracker, prompts_digest

__all__ = [
    "METRICS",
    "Tracker",
    "budget_histogram",
    "budgets_against_beliefs",
    "end_run",
    "learning_curve",
    "locate",
    "log_model",
    "prompts_digest",
]
