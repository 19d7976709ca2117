"""Restores planner, admission and quarantine from a checkpoint's state. Loads neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kray.config import KrayConfig
from kray.driver.state import RunState
from kray.errors import ConfigError
from kray.plan_modes import due_of_all, offered_prompts, offered_share
from kray.planner import KnapsackPlanner
from kray.planner.limits import most_due
from kray.planner.metrics import CalibrationTally
from kray.planner.role_beliefs import RoleBeliefs
from kray.prompts import PromptSampler
from kray.prompts.admission import Admission
from kray.prompts.full_admission import FullAdmission
from kray.prompts.quarantine import Quarantine
from kray.records import Prompt
from kray.train.checkpoints import STATE


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Turn what a state of another version, or a damaged one, raises inside into a ConfigError that names its file."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"resume: {checkpoint / STATE} cannot be taken over: {why}; go on with the kray that wrote it, or from another "
            "checkpoint"
        ) from error


def restore(
    state: RunState,
    planner: KnapsackPlanner,
    admission: Admission | FullAdmission | None,
    labels: dict[str, str] | None,
    per_step: int,
) -> None:
    """Take over what labels had taught by the time of the checkpoint; everything else is the configuration's.

    Args:
        state: Of the checkpoint.
        planner: As the configuration makes it.
        admission: As `make_admission` returns it.
        labels: As `prior_labels` returns them.
        per_step: Prompts that were visited in every step where the state holds nothing for admission.
    """
    # For the errors of a state that cannot be read: recorder and training load these parts themselves.
    if state.calibration:
        CalibrationTally().load_dict(state.calibration)
    Quarantine(0).load_dict(state.quarantine)
    RoleBeliefs(planner.settings).load_dict(state.roles)
    planner.load_dict(state.planner)
    planner.beliefs.relabel(labels)
    if admission is None:
        return
    if state.waiting:
        admission.load_dict(state.waiting)
    else:
        # Until now every prompt that was offered was visited.
        admission.skip(state.step * per_step)


def check_learned(config: KrayConfig, state: RunState, train: Sequence[Prompt]) -> None:
    """Take over a checkpoint's state as a run does, for the errors that this raises."""
    admission = make_admission(config, [prompt.id for prompt in train])
    labels = prior_labels(train, config.plan.prior_by)
    restore(state, KnapsackPlanner.of(config.plan), admission, labels, config.prompts.per_step)


def make_admission(config: KrayConfig, ids: list[str]) -> Admission | FullAdmission | None:
    """Return the admission of prompts for a planner that may pass some over; None where it visits all that it is offered."""
    plan, per_step = config.plan, config.prompts.per_step
    if offered_share(plan) <= 1:
        return None
    stream = PromptSampler(ids, 1, config.run.seed, config.prompts.shuffle)
    most = most_due(plan)
    if plan.candidates == 0:
        half = due_of_all(per_step)
        return FullAdmission(stream, plan.max_wait, half if most is None else min(half, most))
    return Admission(stream, offered_prompts(plan, per_step, len(ids)), plan.max_wait, most)


def prior_labels(prompts: Sequence[Prompt], by: str) -> dict[str, str] | None:
    """Return the label of the prior that each prompt shares, by prompt id; None where all share one."""
    if by == "all":
        return None
    labels = {}
    for prompt in prompts:
        kind = prompt.metadata.get("kind") if by == "kind" else None
        labels[prompt.id] = f"{prompt.source}/{kind}" if kind else prompt.source
    return labels if len(set(labels.values())) > 1 else None
