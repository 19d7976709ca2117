"""Exports a trained policy from its checkpoint to a Hugging Face folder.

Guarantees
- A folder appears completely or not at all, and nothing is overwritten unless asked for.
- The exported model computes what the learner computes: LoRA adapters are merged; tokenizer, chat template and generation
  config are the start model's.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kray.config import ModelConfig
from kray.errors import ConfigError, KrayError


def export_checkpoint(
    checkpoint: str | Path, source: str, model: ModelConfig, folder: str | Path, adapters: str | Path = ""
) -> int:
    """Write the policy of a checkpoint of any number of ranks as a Hugging Face folder.

    Runs in one process without an accelerator; holds the model once in float32 and once in model.dtype.

    Args:
        checkpoint: A complete checkpoint.
        source: The start model's folder or hub id.
        model: The run's `model` section.
        folder: Where to write; must not exist or be empty.
        adapters: Where to write the LoRA adapters alone as a peft folder, "" for nowhere.

    Returns:
        Number of parameters.

    Raises:
        ConfigError: A folder is not empty, the run has no adapters, or the model cannot be loaded.
        KrayError: The checkpoint cannot be read or the folder cannot be written.
    """
    from kray.train import lora
    from kray.train import model as policy
    from kray.train.sharded_checkpoint import read_checkpoint

    if adapters and model.lora is None:
        raise ConfigError("adapters: the run has none (model.lora is null)")
    trained: Any = policy.load_policy(source, model.dtype, lora=model.lora, checked=False)
    read_checkpoint(Path(checkpoint) / "learner", policy.trained_tensors(trained), rank=0)
    if adapters and model.lora is not None:
        with atomic_folder(Path(adapters)) as unfinished:
            lora.save_adapters(trained, model.lora, source, unfinished)
    state = policy.full_state(trained, model.dtype)
    with atomic_folder(Path(folder)) as unfinished:
        policy.export_policy(trained, state, model.dtype, source, unfinished)
    return sum(tensor.numel() for _, tensor in state)


@contextmanager
def atomic_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` when the context ends without an error.

    Args:
        folder: The final folder.
        replace: Whether an existing folder is replaced.

    Raises:
        ConfigError: The folder is not empty and `replace` is false.
        KrayError: It cannot be written.
    """
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
    """Check that `folder` can be written by `atomic_folder`.

    Raises:
        ConfigError: It cannot.
    """
    if folder.exists() and not (folder.is_dir() and (replace or not any(folder.iterdir()))):
        raise ConfigError(f"{folder} exists and is not an empty folder: name another one")
