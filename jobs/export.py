"""Export a trained policy: a Hugging Face folder that AutoModelForCausalLM and vLLM load, with tokenizer and chat template.

    python jobs/export.py ~/kray-runs/quickstart-20261121-101500 ~/models/arithmetic
    python jobs/export.py ~/kray-runs/gsm8k-20261121-101500 /shared/models/gsm8k --step 120 --register gsm8k

A run folder stands for its newest checkpoint, or that of --step. LoRA's adapters come merged; --adapters writes them alone
too, as a peft folder. --register makes the export a version of a model in the registry of the run's own MLflow store.
On a cluster all folders must be on storage that its nodes share: a Ray task does the work.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from kray.cluster.address import require_cluster
from kray.cluster.session import connect, run_as_task
from kray.config import KrayConfig, kept_config, load_checked
from kray.driver.restore import reading
from kray.driver.run_lock import lock_folder
from kray.driver.state import RunState
from kray.errors import ConfigError
from kray.launch.main import guarded
from kray.tracking import locate, log_model
from kray.train.checkpoints import checkpoint_at_step, find_checkpoint, read_state
from kray.train.export import check_free, export_checkpoint
from kray.train.start_model import find_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=folder, help="a run folder or a checkpoint folder")
    parser.add_argument("out", type=folder, help="the folder to make; it must not exist, or be empty")
    parser.add_argument("--step", type=int, help="of the checkpoint to take from a run folder (default: the newest)")
    parser.add_argument("--adapters", type=folder, metavar="FOLDER", help="also write LoRA's adapters alone (peft)")
    parser.add_argument("--register", metavar="NAME", help="also register the export in MLflow under this name")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="what has changed since, such as model.path")
    arguments = parser.parse_intermixed_args()
    for target in filter(None, (arguments.out, arguments.adapters)):
        check_free(target)
    if arguments.step is not None:
        checkpoint: Path | None = checkpoint_at_step(arguments.run, arguments.step)
    else:
        checkpoint = find_checkpoint(str(arguments.run))
    assert checkpoint is not None
    run = checkpoint.parent.parent
    with reading(checkpoint):
        state = RunState.from_dict(read_state(checkpoint))
    if arguments.register and not state.mlflow_run_id:
        raise ConfigError(f"--register: {checkpoint} does not say which MLflow run it belongs to")
    config = load_checked(str(kept_config(run)), [*arguments.overrides, "resume="])
    require_cluster()
    with contextlib.ExitStack() as held:
        for target in filter(None, (arguments.out, arguments.adapters)):
            held.enter_context(lock_folder(target, "an export", beside=True))
            check_free(target)
        export(config, checkpoint, arguments)
    if arguments.register:
        store = locate(config.track.uri, run)
        where = log_model(store, state.mlflow_run_id, arguments.out, arguments.register, state.step, True)
        print(f"registered it as {where} in MLflow at {store.shown}")
    return 0


def export(config: KrayConfig, checkpoint: Path, arguments: argparse.Namespace) -> None:
    model = find_model(config)
    connect(config)
    work = (checkpoint, model, config.model, arguments.out, arguments.adapters or "")
    parameters = run_as_task(config.train.timeout_s, export_checkpoint, *work)
    print(f"exported {checkpoint} ({parameters:,} parameters, {config.model.dtype}) to {arguments.out}", flush=True)


def folder(text: str) -> Path:
    return Path(text).expanduser().absolute()


if __name__ == "__main__":
    guarded(main)
