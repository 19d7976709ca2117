"""Logs the trained policy as a model in MLflow, and registers it, as track.log_model says.

This never fails a run: errors become warnings.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from kray.config import KrayConfig
from kray.config.validation import NOT_IN_MODELS
from kray.errors import KrayError
from kray.tracking import locate, log_model
from kray.train.export import atomic_folder
from kray.train.learner_group import LearnerGroup

logger = logging.getLogger(__name__)

# Name of the exported model's folder in a run folder.
MODEL = "model"
# Seconds; a model of some GB takes minutes to upload to a remote MLflow.
UPLOAD_TIMEOUT_S = 1800.0


async def log_trained(
    config: KrayConfig, learners: LearnerGroup, run_folder: Path, mlflow_run_id: str, step: int
) -> None:
    """Export the learners' policy after the last step as track.log_model says: to <run folder>/model and to MLflow.

    A failure is logged as a warning; the policy itself is in the newest checkpoint.

    Args:
        config: The run's configuration.
        learners: The learner ranks.
        run_folder: The run's folder.
        mlflow_run_id: The run's id in MLflow.
        step: The last step.
    """
    track, target = config.track, run_folder / MODEL
    if not track.log_model:
        return
    name = track.model_name or "".join("_" if letter in NOT_IN_MODELS else letter for letter in config.run.name)
    try:
        with atomic_folder(target, replace=True) as unfinished:
            await learners.export(unfinished)
        register = track.log_model == "register"
        work = asyncio.to_thread(log_model, locate(track.uri, run_folder), mlflow_run_id, target, name, step, register)
        where = await asyncio.wait_for(work, UPLOAD_TIMEOUT_S)
    except TimeoutError:
        logger.warning(f"track.log_model: MLflow did not store {target} within {UPLOAD_TIMEOUT_S:.0f} s")
    except KrayError as error:
        logger.warning(f"track.log_model: {error}")
    else:
        logger.info(f"model: {target}, in MLflow {where}")
