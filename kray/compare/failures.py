"""Runs of a comparison that did not end well: what a job must know of them, so that the others finish.

In the folder of the comparison

    under-way.json                       the run that is being trained, for a job whose driver dies
    <method>/seed-<seed>/failed.json     why a run was given up, until the comparison is started again
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kray.compare.study import Child, Study
from kray.text import legible

UNDER_WAY, FAILED = "under-way.json", "failed.json"


@dataclass(frozen=True)
class UnderWay:
    """A run that was being trained when its driver wrote this down.

    Attributes:
        method: Of the run.
        seed: Of the run.
        mlflow_run_id: Its MLflow run, "" before there is one.
    """

    method: str
    seed: int
    mlflow_run_id: str = ""

    def child(self, study: Study) -> Child | None:
        """Return the run, None where it is not asked for or done."""
        mine = [child for child in study.children if (child.method, child.seed) == (self.method, self.seed)]
        return next((child for child in mine if child.result() is None), None)


def note_under_way(study: Study, child: Child | None, mlflow_run_id: str = "") -> None:
    """Write down which run is being trained; None: no run is."""
    file = study.folder / UNDER_WAY
    if child is None:
        file.unlink(missing_ok=True)
    else:
        _write(file, {"method": child.method, "seed": child.seed, "mlflow_run_id": mlflow_run_id})


def under_way(study: Study) -> UnderWay | None:
    """Return the run that a driver which is gone was training."""
    found = _read(study.folder / UNDER_WAY)
    try:
        return UnderWay(str(found["method"]), int(found["seed"]), str(found.get("mlflow_run_id", "")))
    except (KeyError, TypeError, ValueError):
        return None


def give_up(child: Child, reason: str, attempts: int) -> None:
    """Write down why a run is not tried again, and how often it was."""
    child.folder.mkdir(parents=True, exist_ok=True)
    # What a policy wrote may be in it.
    _write(child.folder / FAILED, {"reason": legible(reason), "attempts": attempts})


def failure(child: Child) -> str:
    """Return why the run was given up, "" where it was not."""
    found = _read(child.folder / FAILED)
    if "reason" not in found or child.result() is not None:
        return ""
    attempts = found.get("attempts", 1)
    return f"{found['reason']}{f' (tried {attempts} times)' if attempts != 1 else ''}"


def forget(study: Study) -> None:
    """Let every run be tried again."""
    for child in study.children:
        (child.folder / FAILED).unlink(missing_ok=True)


def missing(study: Study) -> dict[str, str]:
    """Return the names of the runs that are not done -> why each was given up, "" where it was not."""
    return {child.name: failure(child) for child in study.children if child.result() is None}


def _read(file: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _write(file: Path, content: dict[str, Any]) -> None:
    draft = file.with_name(f".{file.name}")
    draft.write_text(json.dumps(content) + "\n", encoding="utf-8")
    os.replace(draft, file)
