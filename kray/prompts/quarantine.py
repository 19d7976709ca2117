"""Prompts that are left out because nothing comes back of them.

Pure. A prompt that fails `after` times in a row goes into quarantine and stays there for the rest of the run; rollouts that
come back and can be judged make earlier failures forgotten. `after` 0: nobody ever does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kray.metrics import PROMPTS_QUARANTINED


class Quarantine:
    """after: failures in a row. left_out: prompt id -> why, in the order in which they came."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.left_out: dict[str, str] = {}
        self._failures: dict[str, int] = {}  # in a row, of prompts at large

    def visited(self, fine: Iterable[str], failed: Mapping[str, tuple[int, str]]) -> list[str]:
        """A step's visits: prompts of which something came back, and (failures, why) of those without anything.

        Returns the prompts that are in quarantine from now on.
        """
        for prompt_id in fine:
            self._failures.pop(prompt_id, None)
        caught = []
        for prompt_id, (times, why) in failed.items():
            self._failures[prompt_id] = self._failures.get(prompt_id, 0) + times
            if self.after and self._failures[prompt_id] >= self.after:
                del self._failures[prompt_id]
                self.left_out[prompt_id] = why
                caught.append(prompt_id)
        return caught

    def __contains__(self, prompt_id: object) -> bool:
        return prompt_id in self.left_out

    def metrics(self) -> dict[str, float]:
        return {PROMPTS_QUARANTINED: float(len(self.left_out))}

    def to_dict(self) -> dict[str, Any]:
        return {"left_out": dict(self.left_out), "failures": dict(self._failures)}

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `to_dict` wrote; {} for a state without any."""
        self.left_out, self._failures = dict(state.get("left_out", {})), dict(state.get("failures", {}))
