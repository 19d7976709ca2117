"""Verifiers that behave badly, for the tests of the scorer; imported in its processes by name."""

import os
import re
import time
from pathlib import Path

from kray.rewards import Reward


def length(response, answer, *, scale=1.0):
    return len(response) * scale


def endless(response, answer):
    while response == "endless":
        pass
    return 1.0


def stuck_regex(response, answer):
    """Holds the interpreter's lock for ever."""
    if response == "endless":
        re.match(r"(a+)+$", "a" * 60 + "b")
    return 1.0


def dies(response, answer):
    if response == "die":
        os._exit(3)
    return 1.0


def dies_once(response, answer):
    """answer: a file that remembers the death."""
    if response == "die" and not Path(answer).exists():
        Path(answer).write_text("died")
        os._exit(3)
    return 1.0


def raises(response, answer):
    if response == "raise":
        raise KeyError("no such column")
    if response == "exit":
        raise SystemExit(1)
    return True


def not_finite(response, answer):
    return {"nan": float("nan"), "inf": float("inf"), "none": None, "text": "1"}[response]


def pid(response, answer):
    time.sleep(0.01)
    return Reward(float(os.getpid()), "process")


def prints(response, answer):
    print("noise " * 1000)
    return 1.0


def takes_memory(response, answer):
    """response: GiB."""
    return float(len(bytearray(int(float(response) * 2**30))) > 0)
