"""The state of a run that a checkpoint holds beside the learner's part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kray.errors import ConfigError


@dataclass
class RunState:
    """What a run remembers. The sampler needs nothing but the step, and seeds are derived from it.

    Attributes:
        step: Completed steps, and so the policy's version.
        rollouts: Rollouts so far.
        visits: Visits of prompts so far.
        tokens: Sampled tokens so far.
        elapsed_s: Seconds in steps.
        mlflow_run_id: The MLflow run.
        prompts: Digest of the training prompts.
        accuracy_before: Accuracy of the start model, None before it was measured.
        planner: State of the planner.
        waiting: State of the admission; {} where the planner admits no prompts.
        calibration: State of the tally of the epoch's predictions.
        transitions: (5, 5) counts of status changes since their last table, see StepRecorder.
        nonfinite: Steps in a row whose gradient was not finite (train.max_nonfinite).
        lengths: Running mean of each prompt's response tokens.
        quarantine: State of the quarantine.
        roles: State of the beliefs about roles beside the first that learns; {} without such.
        version: Of this format.
    """

    step: int = 0
    rollouts: int = 0
    visits: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    mlflow_run_id: str = ""
    prompts: str = ""
    accuracy_before: float | None = None
    planner: dict[str, Any] = field(default_factory=dict)
    waiting: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    transitions: list[list[int]] = field(default_factory=list)
    nonfinite: int = 0
    lengths: dict[str, float] = field(default_factory=dict)
    quarantine: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, Any] = field(default_factory=dict)
    version: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON can hold it."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> RunState:
        """Return the state that `to_dict` wrote.

        Raises:
            ValueError: It is of another version.
        """
        if state.get("version") != cls.version:
            raise ValueError(
                f"the checkpoint is of version {state.get('version')}; this kray reads version {cls.version}"
            )
        # States without `visits` hold those of each prompt.
        visits = state.get("planner", {}).get("beliefs", {}).get("visits", [])
        return cls(**({"visits": int(sum(visits))} | state))


def check_same_prompts(state: RunState, digest: str) -> None:
    """Refuse training prompts that are not those of the checkpoint's run: what it has learned is about others.

    digest: of the prompts now, as kray.tracking.prompts_digest makes it.
    """
    if state.prompts != digest:
        raise ConfigError("prompts.train: the prompts are not those that this run began with; start a new run")
