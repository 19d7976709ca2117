"""How rollout tasks end: as an engine reports it, and as the pool tells whoever submitted them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kray.records import Rollout, RolloutTask


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rollout task ended: with rollouts, or with the reason why there are none."""

    task: RolloutTask
    rollouts: list[Rollout]
    failure: str = ""
    tries: int = 1  # engines that were lost over it, where it failed


@dataclass
class Report:
    """What an engine has to tell since the last report. busy_s: seconds in which it was stepping.

    progress: rollouts that are finished of tasks that are not. Pickled with one array for all tokens and one for all
    logprobs: a thousand small arrays cost more than what is in them.
    """

    progress: dict[int, int] = field(default_factory=dict)  # task id -> rollouts
    finished: list[tuple[int, list[Rollout]]] = field(default_factory=list)  # (task id, its rollouts by index)
    refused: list[tuple[int, str]] = field(default_factory=list)  # (task id, why the engine cannot run it)
    busy_s: float = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        rollouts = [rollout for _, found in self.finished for rollout in found]
        tasks = [(task_id, len(found)) for task_id, found in self.finished]
        labels = [(r.prompt_id, r.index, len(r.tokens), r.finish_reason, r.policy_versions) for r in rollouts]
        tokens = np.concatenate([np.zeros(0, np.int32), *(r.tokens for r in rollouts)])
        logprobs = np.concatenate([np.zeros(0, np.float32), *(r.logprobs for r in rollouts)])
        return _unpack, (self.progress, self.refused, self.busy_s, tasks, labels, tokens, logprobs)


def _unpack(
    progress: dict[int, int],
    refused: list[tuple[int, str]],
    busy_s: float,
    tasks: Sequence[tuple[int, int]],
    labels: Sequence[tuple[str, int, int, str, tuple]],
    tokens: np.ndarray,
    logprobs: np.ndarray,
) -> Report:
    """The inverse of `Report.__reduce__`; the rollouts' arrays are views of the two."""
    ends = np.cumsum([length for _, _, length, _, _ in labels]).tolist()
    rollouts = iter(
        Rollout(prompt_id, index, tokens[end - length : end], logprobs[end - length : end], reason, versions)
        for (prompt_id, index, length, reason, versions), end in zip(labels, ends, strict=True)
    )
    finished = [(task_id, [next(rollouts) for _ in range(count)]) for task_id, count in tasks]
    return Report(progress, finished, refused, busy_s)
