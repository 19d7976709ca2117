"""Responses to held-out prompts before and after training, from the tables of a run's evaluations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Folder of the tables, one for each evaluation, in the run folder and in MLflow.
EVALUATIONS = "evaluations"


@dataclass(frozen=True, slots=True)
class ComparedAnswer:
    """A held-out prompt and the greedy responses to it before and after training, each with its reward."""

    prompt: str
    before: str
    reward_before: float
    after: str
    reward_after: float

    @property
    def gain(self) -> float:
        """What the reward has risen by."""
        return self.reward_after - self.reward_before


def compared_answers(run_folder: Path) -> list[ComparedAnswer]:
    """Return the greedy responses to held-out prompts before and after training.

    Args:
        run_folder: Folder of the run.

    Returns:
        Those that were recorded; none where fewer than two evaluations with greedy responses were.
    """
    tables = sorted((run_folder / EVALUATIONS).glob("step-*.json"))
    if len(tables) < 2:
        return []
    first, last = ({row["id"]: row for row in _read(path)} for path in (tables[0], tables[-1]))
    found = [(old, last[name]) for name, old in first.items() if name in last]
    return [
        ComparedAnswer(
            old["prompt"], old["greedy_response"], old["greedy_reward"], new["greedy_response"], new["greedy_reward"]
        )
        for old, new in found
        if old.get("greedy_reward") is not None and new.get("greedy_reward") is not None
    ]


def examples(answers: Sequence[ComparedAnswer]) -> list[ComparedAnswer]:
    """Return up to three of the answers: two that became better, and one that became worse or else stayed as it was."""
    better = [answer for answer in answers if answer.gain > 0]
    worse = [answer for answer in answers if answer.gain < 0]
    same = [answer for answer in answers if answer.gain == 0]
    return [*better[:2], *worse, *same, *better[2:]][:3]


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table; none where the file cannot be read, which must not end a run."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
