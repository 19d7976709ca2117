"""Arguments, checkpoints and components for the tests of `--check`."""

from __future__ import annotations

import json
from pathlib import Path

from inline_jobs import ROOT

from kray.config import KrayConfig, to_yaml
from kray.driver.state import RunState
from kray.planner import KnapsackPlanner

QUICK = str(ROOT / "configs" / "tiny.yaml")


def arguments(model: Path, *more: str) -> list[str]:
    return ["model.tiny=null", f"model.path={model}", "prompts.max_tokens=200", *more]


def checkpoint(folder: Path, config: KrayConfig, digest: str) -> Path:
    """Make a run folder with one checkpoint that has what is read before anything is started."""
    step = folder / "checkpoints" / "step-000003"
    (step / "learner").mkdir(parents=True)
    (step / "files.json").write_text("{}")
    state = RunState(step=3, prompts=digest, planner=KnapsackPlanner.of(config.plan).to_dict())
    (step / "state.json").write_text(json.dumps(state.to_dict()))
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def load_parts_of(config: KrayConfig):
    from kray.driver.prepare import encode, load_prompts, read_tiny

    reader = read_tiny(config, config.model.tiny)
    return [pair for one in load_prompts(config).train for pair in encode(config, one, reader).encoded]
