"""A trained policy outside its run: a Hugging Face folder, and a model in MLflow.

Promises
- A folder appears whole or not at all, and nothing that was there is overwritten without being asked.
- What is exported computes what the learner computes: LoRA's adapters come merged, tokenizer, chat template and
  generation config are the start model's.
- `log_trained` never fails a run: what goes wrong becomes a warning.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kray.config import KrayConfig, ModelConfig
from kray.config.validation import NOT_IN_MODELS
from kray.errors import ConfigError, KrayError
from kray.tracking import locate, log_model

logger = logging.getLogger(__name__)

MODEL = "model"  # in a run folder
UPLOAD_TIMEOUT_S = 1800.0


def export_checkpoint(
    checkpoint: str | Path, source: str, model: ModelConfig, folder: str | Path, adapters: str | Path = ""
) -> int:
    """Writes the policy of a checkpoint of any number of ranks as a Hugging Face folder; returns its parameters' number.

    source: the start model's folder or hub id. adapters: where a peft folder of the adapters alone goes, "" for none.
    One process, no accelerator; holds the model once in float32 and once in model.dtype. Raises ConfigError, KrayError.
    """
    from kray.train import lora
    from kray.train import model as policy
    from kray.train import sharded_checkpoint as saving

    if adapters and model.lora is None:
        raise ConfigError("adapters: the run has none (model.lora is null)")
    live: Any = policy.load_policy(source, model.dtype, lora=model.lora, checked=False)
    saving.read(Path(checkpoint) / "learner", policy.trained_tensors(live), rank=0)
    if adapters and model.lora is not None:
        with atomic_folder(Path(adapters)) as unfinished:
            lora.save_adapters(live, model.lora, source, unfinished)
    state = policy.full_state(live, model.dtype)
    with atomic_folder(Path(folder)) as unfinished:
        policy.export_policy(live, state, model.dtype, source, unfinished)
    return sum(tensor.numel() for _, tensor in state)


@contextmanager
def atomic_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Gives a folder to write in, which becomes `folder` when all went well. Raises ConfigError when that holds something."""
    check_free(folder, replace)
    unfinished = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    except OSError as error:
        raise KrayError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_free(folder: Path, replace: bool = False) -> None:
    """Raises ConfigError when `folder` cannot become a new one."""
    if folder.exists() and not (folder.is_dir() and (replace or not any(folder.iterdir()))):
        raise ConfigError(f"{folder} exists and is not an empty folder: name another one")


async def log_trained(config: KrayConfig, learners: Any, run_folder: Path, mlflow_run_id: str, step: int) -> None:
    """What track.log_model asks for, after the last step: the learners' policy as <run folder>/model, and in MLflow.

    learners: a LearnerGroup. A failure is logged as a warning; the policy itself is safe in the newest checkpoint.
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
        logger.warning(f"track.log_model: MLflow did not take {target} within {UPLOAD_TIMEOUT_S:.0f} s")
    except KrayError as error:
        logger.warning(f"track.log_model: {error}")
    else:
        logger.info(f"model: {target}, in MLflow {where}")
