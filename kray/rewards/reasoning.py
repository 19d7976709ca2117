"""The reasoning_gym verifier: each task brings its own scoring, by how right an answer is.

The right answer travels as one JSON string, {"task": name, "entry": {...}}, with everything the task's scoring looks at.
JSON has neither tuples nor keys that are not text, and some tasks compare them: a tuple is written {"__tuple__": [...]},
a mapping with other keys {"__items__": [[key, value], ...]}. Plain JSON is read as it is.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import Any

import reasoning_gym

from kray.rewards.verifiers import Reward

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def verify_reasoning(response: str, answer: str, *, partial: bool = True) -> Reward:
    """The task's own score in [0, 1] of the text in the last <answer></answer>, or of the whole response without tags.

    partial: keep the task's marks for nearly right answers (many tasks give 0.01-0.1 to any answer at all); False: full
    marks or nothing. Raises ValueError for an answer that does not hold a task and its entry.
    """
    try:
        packed = json.loads(answer, object_hook=_restore)
        task, entry = packed["task"], packed["entry"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'reasoning_gym: the answer must be JSON with "task" and "entry", not {answer[:60]!r}'
        ) from error
    tagged = _TAGGED.findall(response)
    given = (tagged[-1] if tagged else response).strip()
    value = float(_scoring(task)(answer=given, entry=entry))
    if not partial:
        value = float(value >= 1.0)
    return Reward(value, "" if value >= 1.0 else f"{task}: {given[:60]!r}")


@functools.cache
def _scoring(task: str) -> Callable[..., float]:
    return reasoning_gym.get_score_answer_fn(task)


def _restore(value: dict[str, Any]) -> Any:
    if len(value) == 1:
        if "__tuple__" in value:
            return tuple(value["__tuple__"])
        if "__items__" in value:
            return dict(value["__items__"])
    return value
