"""Measures TRL on the work of a kray run, in a virtual environment of its own, which is made when there is none.

TRL needs other versions of the same packages than kray, so kray/bench/trl_child.py runs in a process that has only TRL's.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import tempfile
import threading
import venv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kray.config import KrayConfig
from kray.errors import ConfigError, KrayError
from kray.train.tiny_files import default_cache

logger = logging.getLogger(__name__)

# Installed one after the other, so that the CPU build of torch is kept.
PACKAGES = ("torch==2.13.0", "trl==1.16.0")
# Seconds for pip to install a package, and for all of TRL's runs.
INSTALL_TIMEOUT_S, RUN_TIMEOUT_S = 1800.0, 900.0
# Keys of the `train` section that TRL takes over.
LEARNING = ("clip_low", "clip_high", "lr", "weight_decay", "beta1", "beta2", "eps", "grad_clip")
# Numbers of micro-batches tried for a step's rollouts; small ones fit a core's cache.
MICROBATCHES = (1, 4, 8)
# Steps for which a setting is tried after the warm-up; the fastest counts.
TRY_STEPS, TRY_BATCHED_STEPS = 6, 3


def find_python(given: str) -> str:
    """Return a Python that has TRL: the given one, else that of the cache, which is made when it is missing.

    Raises:
        ConfigError: The given one cannot be run.
        KrayError: TRL could not be installed.
    """
    if given:
        if not shutil.which(given):
            raise ConfigError(f"--trl-python {given} is not a program that can be run")
        return given
    folder = default_cache().expanduser() / "trl-venv"
    python, done = folder / "bin" / "python", folder / "installed"
    if done.is_file() and done.read_text().split() == list(PACKAGES):
        return str(python)
    logger.info(f"TRL: making a virtual environment in {folder}, some minutes, once")
    venv.create(folder, with_pip=True, clear=True)
    for package in ("pip", *PACKAGES):
        logger.info(f"TRL: installing {package}")
        command = [str(python), "-m", "pip", "install", "--quiet", "--upgrade", package]
        _call(command, INSTALL_TIMEOUT_S, dict(os.environ))
    done.write_text("\n".join(PACKAGES))
    return str(python)


def run_trl(
    python: str, config: KrayConfig, model: str, prompts: list[list[dict[str, str]]], warm: int, batched: bool
) -> dict[str, Any]:
    """Train with TRL on the same prompts and return medians of the fastest setting.

    Args:
        python: A Python that has TRL.
        config: kray's configuration, whose settings TRL takes over.
        model: The start model.
        prompts: Text and answer of the prompts of each step.
        warm: Number of first steps that do not count.
        batched: Whether TRL's continuous batching is tried, too.

    Raises:
        KrayError: TRL failed; the message has its last lines.
    """
    cores = config.rollout.engines * config.rollout.cpus_per_engine + config.train.ranks * config.train.cpus_per_rank
    cores = min(cores, os.cpu_count() or cores)
    tries = [(count, False, TRY_STEPS) for count in MICROBATCHES] + [(1, True, TRY_BATCHED_STEPS)] * batched
    train = asdict(config.train)
    job = {
        "model": model,
        "steps": prompts,
        "warm": warm,
        "rollouts_per_prompt": config.plan.budget // config.prompts.per_step,
        "max_response_tokens": config.rollout.max_response_tokens,
        "temperature": config.rollout.temperature,
        "seed": config.run.seed,
        "threads": cores,
        "candidates": [{"microbatches": m, "batched": b, "steps": min(warm + n, len(prompts))} for m, b, n in tries],
    } | {name: train[name] for name in LEARNING}
    logger.info(
        f"TRL: tries {len(tries)} settings, then trains {len(prompts)} steps with the fastest, on {cores} threads"
    )
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder, "job.json"), Path(folder, "answer.json")
        asked.write_text(json.dumps(job))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"OMP_NUM_THREADS": str(cores), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        script = str(Path(__file__).with_name("trl_child.py"))
        _call([python, "-W", "ignore", script, str(asked), str(answer)], RUN_TIMEOUT_S, environment)
        found = json.loads(answer.read_text())
    step_s = float(np.median(found["steps_s"][warm:]))
    parts = {part: float(np.median(found[f"{part}_steps"][warm:])) for part in ("generate_s", "prepare_s")}
    return found | parts | {"step_s": step_s, "rollouts_per_s": found["rollouts_per_step"] / step_s}


def _call(command: list[str], timeout_s: float, environment: dict[str, str]) -> None:
    """Run a command and log its lines that begin with "TRL: "; raise KrayError with its last lines when it fails."""
    lines: list[str] = []
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tempfile.gettempdir()
    )
    watch = threading.Timer(timeout_s, process.kill)
    watch.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("TRL: "):
                logger.info(lines[-1])
        process.wait()
    finally:
        watch.cancel()
        process.kill()
    if process.returncode:
        tail = "\n".join(lines[-8:])
        what = " ".join(Path(part).name for part in command[:4])
        raise KrayError(f"{what} ended with {process.returncode} (limit {timeout_s:.0f} s):\n{tail}")
