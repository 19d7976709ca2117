"""Records an evaluation outside a training as an MLflow run of its own, nested under the training run."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kray.config.redaction import redact, redact_value
from kray.errors import KrayError
from kray.tracking.mlflow_store import MlflowRun
from kray.tracking.refusals import deliver_rows
from kray.tracking.store import Store, unreachable
from kray.tracking.tables import table_json

logger = logging.getLogger(__name__)
# The tag by which MLflow nests runs.
PARENT_TAG = "mlflow.parentRunId"


def log_evaluation(
    store: Store,
    experiment: str,
    name: str,
    parent_id: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    step: int,
    metrics: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
) -> str:
    """Record an evaluation.

    Args:
        store: Where to record it.
        experiment: The MLflow experiment.
        name: The name of the new MLflow run.
        parent_id: The MLflow id of the training run, "" for a policy without one.
        params: The configuration, by dotted keys.
        tags: Tags of the run.
        step: The training step of the policy.
        metrics: Metric -> value.
        rows: Prompts, responses and rewards, which become the table evaluation/step-<step>.json.

    Returns:
        The shell command or the address that opens the run.

    Raises:
        KrayError: It could not be recorded.
    """
    run = MlflowRun(store, experiment, name)
    named = {key: redact(str(value)) for key, value in tags.items()} | {"kray.kind": "evaluation"}
    if parent_id:
        named[PARENT_TAG] = parent_id
    try:
        with tempfile.TemporaryDirectory(prefix="kray-evaluation-") as folder:
            table = Path(folder) / f"step-{step:06d}.json"
            table.write_text(table_json(rows), encoding="utf-8")
            run.open({key: redact_value(key, value) for key, value in params.items()}, named, [])
            for key, why in deliver_rows([{"step": step, "time": time.time(), **metrics}], run.metrics):
                logger.warning("MLflow refuses %s of the evaluation: %s", key, redact(why))
            run.table(table, "evaluation")
        run.end("FINISHED")
    except KrayError:
        raise
    except Exception as error:
        # Errors of MLflow, requests or SQLAlchemy.
        raise unreachable(store, f"the evaluation could not be recorded: {error}") from error
    return run.open_command
