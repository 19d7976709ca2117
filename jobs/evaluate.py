"""Evaluate a checkpoint or a model: accuracy, greedy accuracy and unbiased pass@k, in parallel on the pool.

    python jobs/evaluate.py ~/kray-runs/quickstart-20261121-101500
    python jobs/evaluate.py Qwen/Qwen2.5-0.5B-Instruct --config configs/gsm8k.yaml evaluate.samples=16 --json out.json

A run folder stands for its newest checkpoint and brings its own configuration. prompts.test is what is evaluated on:
point it at any source, for instance prompts.test.kind=jsonl prompts.test.path=mine.jsonl. The figures become an MLflow run,
nested under the training run; those of a model that no run has made do where track.uri or MLFLOW_TRACKING_URI is set.
Engines and learner are those of the configuration: `train.ranks=1 rollout.engines=1` asks for less.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import tempfile
from pathlib import Path

from kray.cluster.address import require_cluster
from kray.cluster.resources import require_gpus
from kray.cluster.session import connect
from kray.config import KrayConfig, kept_config, load_checked, to_yaml
from kray.config.resume import as_begun
from kray.driver.evaluation_record import EvaluationRecord, table
from kray.driver.provenance import tags
from kray.driver.remote import run_on_cluster, share_prompts
from kray.driver.run_lock import lock_folder
from kray.errors import ConfigError
from kray.launch.main import guarded
from kray.launch.preflight import load_checked_prompts
from kray.tracking.tables import plain
from kray.train.checkpoints import find_checkpoint
from kray.train.start_model import find_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="a run folder, a checkpoint folder, a Hugging Face folder or a hub id")
    parser.add_argument("--config", help="a YAML file; needed for a model, a run has its own")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--no-mlflow", action="store_true", help="leave MLflow alone")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="overrides of single keys")
    arguments = parser.parse_intermixed_args()
    path, checkpoint, overrides = Path(arguments.policy).expanduser(), None, list(arguments.overrides)
    if path.is_dir() and not (path / "config.json").is_file():
        checkpoint = find_checkpoint(str(path))
        assert checkpoint is not None
        file = arguments.config or str(kept_config(checkpoint.parent.parent))
        overrides.append("resume=")
    elif arguments.config:
        file = arguments.config
        overrides += [f"model.path={arguments.policy}", "model.tiny=null"]
    else:
        raise ConfigError(f"{arguments.policy} is no run or checkpoint folder; to evaluate a model give --config")
    require_cluster()
    config = load_checked(file, overrides)
    if checkpoint is not None:
        config = as_begun(config, checkpoint.parent.parent)
    with contextlib.ExitStack() as held:
        if arguments.json:
            held.enter_context(lock_folder(Path(arguments.json).absolute(), "an evaluation", beside=True))
        evaluate(config, checkpoint, arguments)
    return 0


def evaluate(config: KrayConfig, checkpoint: Path | None, arguments: argparse.Namespace) -> None:
    prompts = load_checked_prompts(config)
    require_gpus(config)
    model = find_model(config)
    record = None if arguments.no_mlflow else EvaluationRecord.of(config, checkpoint, arguments.policy)
    connect(config)
    shared = share_prompts(prompts)
    del prompts
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        evaluation = run_on_cluster(config, model, Path(folder), checkpoint, "judge", prompts=shared)
    found = dataclasses.asdict(evaluation) | {"policy": str(checkpoint or model)}
    origin = tags() | {"model": model}
    if arguments.json:
        content = found | {"tags": origin, "config": to_yaml(config)}
        Path(arguments.json).write_text(json.dumps(plain(content), indent=2) + "\n")
    print(f"\npolicy            {found['policy']}\n{table(evaluation)}")
    if record is not None:
        print(f"MLflow            {record.record(evaluation, origin)}")


if __name__ == "__main__":
    guarded(main)
