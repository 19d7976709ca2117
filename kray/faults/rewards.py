"""A reward of one's own, with defects on demand: a file in `control` makes one call raise or hang, and is gone then."""

from __future__ import annotations

import time
from pathlib import Path

RAISE, HANG = "raise", "hang"


def judge(response: str, answer: str, control: str) -> float:
    """1 for the right answer. control: a folder; each file in it, named raise-<n> or hang-<n>, hits one call."""
    for file in Path(control).iterdir():
        try:
            file.unlink()
        except FileNotFoundError:  # another call was hit
            continue
        if file.name.startswith(RAISE):
            raise RuntimeError("this reward is to fail")
        time.sleep(3600)
    return float(response.strip() == answer.strip())


def order(control: Path, what: str, number: int) -> None:
    """One of the next calls raises or hangs."""
    (control / f"{what}-{number}").touch()
