"""An evaluation that was made outside a training run, as an MLflow run of its own, nested under the run it judges."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kray.config.redaction import redact, redact_value
from kray.errors import KrayError
from kray.tracking.mlflow_store import MlflowRun, Store, unreachable
from kray.tracking.refusals import deliver_rows

log = logging.getLogger(__name__)
PARENT_TAG = "mlflow.parentRunId"  # what MLflow's page nests runs by


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
    """Makes the run; returns the command or address that opens it. Raises KrayError whatever goes wrong.

    parent_id: MLflow's id of the training run, "" for a policy that has none. step: of the policy. rows: what was asked,
    answered and earned, which becomes the table evaluation/step-<step>.json.
    """
    run = MlflowRun(store, experiment, name)
    named = {key: redact(str(value)) for key, value in tags.items()} | {"kray.kind": "evaluation"}
    if parent_id:
        named[PARENT_TAG] = parent_id
    columns = list(rows[0]) if rows else []
    try:
        with tempfile.TemporaryDirectory(prefix="kray-evaluation-") as folder:
            table = Path(folder) / f"step-{step:06d}.json"
            data = [[row[column] for column in columns] for row in rows]
            table.write_text(json.dumps({"columns": columns, "data": data}, ensure_ascii=False), encoding="utf-8")
            run.open({key: redact_value(key, value) for key, value in params.items()}, named, [])
            for key, why in deliver_rows([{"step": step, "time": time.time(), **metrics}], run.metrics):
                log.warning("MLflow refuses %s of the evaluation: %s", key, redact(why))
            run.table(table, "evaluation")
        run.end("FINISHED")
    except KrayError:
        raise
    except Exception as error:  # MLflow's, requests', sqlalchemy's
        raise unreachable(store, f"the evaluation could not be recorded: {error}") from error
    return run.open_command
