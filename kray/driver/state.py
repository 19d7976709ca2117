"""What must survive a run's end: one dataclass, written by the checkpoint beside the learner's part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kray.errors import ConfigError


@dataclass
class RunState:
    """What a checkpoint holds beside the learner's part. The sampler needs the step alone; seeds are derived from it."""

    step: int = 0  # steps completed, and so the policy's version
    rollouts: int = 0
    visits: int = 0  # of prompts, each as often as it was visited
    tokens: int = 0
    elapsed_s: float = 0.0
    mlflow_run_id: str = ""
    prompts: str = ""  # digest of the training prompts
    accuracy_before: float | None = None
    planner: dict[str, Any] = field(default_factory=dict)
    waiting: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    transitions: list[list[int]] = field(default_factory=list)  # of statuses since their last table, see StepRecorder
    nonfinite: int = 0  # steps in a row whose gradient was not finite (train.max_nonfinite)
    lengths: dict[str, float] = field(default_factory=dict)
    quarantine: dict[str, Any] = field(default_factory=dict)
    version: int = 1

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> RunState:
        if state.get("version") != cls.version:
            raise ValueError(
                f"the checkpoint is of version {state.get('version')}; this kray reads version {cls.version}"
            )
        known = (
            state.get("planner", {}).get("beliefs", {}).get("visits", [])
        )  # what states without `visits` tell of them
        return cls(**({"visits": int(sum(known))} | state))


def check_same_prompts(state: RunState, digest: str) -> None:
    """Refuse training prompts that are not those of the checkpoint's run: what it has learned is about others.

    digest: of the prompts now, as kray.tracking.prompts_digest makes it.
    """
    if state.prompts != digest:
        raise ConfigError("prompts.train: the prompts are not those that this run began with; start a new run")
