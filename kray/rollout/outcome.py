"""Results of rollout tasks: as an engine reports them, and as the pool hands them to whoever submitted the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kray.records import Rollout, RolloutTask
from kray.text import one_line


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """How a rollout task ended: with its rollouts or with a failure.

    Attributes:
        task: The task that ended.
        rollouts: Its rollouts in the order of their index; empty when the task failed.
        failure: Why the task failed; empty when it did not.
        tries: Attempts that were made. Above 1 only for a failed task, each attempt of which lost its engine.
    """

    task: RolloutTask
    rollouts: list[Rollout]
    failure: str = ""
    tries: int = 1


@dataclass(frozen=True, slots=True)
class Failure:
    """Rollouts of one prompt that could not be generated or not be scored (a data failure).

    Attributes:
        prompt_id: The prompt.
        rollouts: How many of its rollouts are missing.
        why: The reason, for people, in one line whatever an engine or an environment wrote.
        tries: Attempts that were made to generate them.
    """

    prompt_id: str
    rollouts: int
    why: str
    tries: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "why", one_line(self.why))


@dataclass
class EngineReport:
    """What an engine has done since its previous report.

    Pickled as one array of all tokens and one of all logprobs, since a thousand small arrays cost more than their content.

    Attributes:
        progress: Task id -> finished rollouts, for tasks that are not finished as a whole.
        finished: (task id, its rollouts by index) of each finished task.
        refused: (task id, reason) of each task that no engine can run.
        busy_s: Seconds in which the engine was stepping.
        sampled: Tokens that it sampled, those of rollouts that have not ended included.
    """

    progress: dict[int, int] = field(default_factory=dict)
    finished: list[tuple[int, list[Rollout]]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    busy_s: float = 0.0
    sampled: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        rollouts = [rollout for _, found in self.finished for rollout in found]
        tasks = [(task_id, len(found)) for task_id, found in self.finished]
        labels = [(r.prompt_id, r.index, len(r.tokens), r.finish_reason, r.policy_versions) for r in rollouts]
        tokens = np.concatenate([np.zeros(0, np.int32), *(r.tokens for r in rollouts)])
        logprobs = np.concatenate([np.zeros(0, np.float32), *(r.logprobs for r in rollouts)])
        return _unpack, (self.progress, self.refused, self.busy_s, self.sampled, tasks, labels, tokens, logprobs)


def _unpack(
    progress: dict[int, int],
    refused: list[tuple[int, str]],
    busy_s: float,
    sampled: int,
    tasks: Sequence[tuple[int, int]],
    labels: Sequence[tuple[str, int, int, str, tuple]],
    tokens: np.ndarray,
    logprobs: np.ndarray,
) -> EngineReport:
    """Invert `EngineReport.__reduce__`; the rollouts' arrays are views of `tokens` and `logprobs`."""
    ends = np.cumsum([length for _, _, length, _, _ in labels]).tolist()
    rollouts = iter(
        Rollout(prompt_id, index, tokens[end - length : end], logprobs[end - length : end], reason, versions)
        for (prompt_id, index, length, reason, versions), end in zip(labels, ends, strict=True)
    )
    finished = [(task_id, [next(rollouts) for _ in range(count)]) for task_id, count in tasks]
    return EngineReport(progress, finished, refused, busy_s, sampled)


def rollout_of(task: RolloutTask, number: int, output: Any) -> Rollout:
    """Convert vLLM's CompletionOutput to the task's rollout of this number, counted from 0."""
    flat = output.logprobs
    return Rollout(
        prompt_id=task.prompt_id,
        index=task.first_index + number,
        tokens=np.array(output.token_ids, dtype=np.int32),
        logprobs=np.array([flat.logprobs[i] for i in flat.start_indices], dtype=np.float32),
        finish_reason=str(output.finish_reason),
        policy_versions=tuple((int(s.version), s.start, s.end) for s in output.weight_versions or ()),
    )
