"""A reward of one's own, with defects on demand: a file in `control` gives one call a defect, and is gone then."""

from __future__ import annotations

import time
from pathlib import Path

from kray.rewards import Reward

RAISE, HANG, TEXT, VALUE = "raise", "hang", "text", "value"
# Text that no file, terminal or message of HTTP takes.
HALVES = "half a character \ud800 and \udfff, NUL \0, \x1b[2J, line\nend\r"


def judge(response: str, answer: str, control: str) -> Reward:
    """1 for the right answer. control: a folder; each file in it, named by a defect and a number, hits one call."""
    for file in Path(control).iterdir():
        try:
            file.unlink()
        except FileNotFoundError:  # another call was hit
            continue
        if file.name.startswith(RAISE):
            raise RuntimeError("this reward is to fail")
        if file.name.startswith(TEXT):
            raise RuntimeError(HALVES)
        if file.name.startswith(VALUE):
            return Reward(1e308, HALVES)
        time.sleep(3600)
    return Reward(float(response.strip() == answer.strip()), f"{response!s}{HALVES}")


def order(control: Path, what: str, number: int) -> None:
    """One of the next calls raises or hangs."""
    (control / f"{what}-{number}").touch()
