"""Exclude prompts whose rollouts keep failing.

Pure. A prompt that fails `after` times in a row is quarantined for the rest of the run; a visit with rollouts that can be
scored resets its failures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kray.metrics import PROMPTS_QUARANTINED


class Quarantine:
    """The quarantined prompts and the failures of others.

    Attributes:
        after: Failures in a row that lead to quarantine; 0: never.
        left_out: Prompt id -> reason, in order of quarantine.
    """

    def __init__(self, after: int) -> None:
        self.after = after
        self.left_out: dict[str, str] = {}
        # Consecutive failures of prompts that are not quarantined.
        self._failures: dict[str, int] = {}

    def visited(self, fine: Iterable[str], failed: Mapping[str, tuple[int, str]]) -> list[str]:
        """Record a step's visits.

        Args:
            fine: Ids of prompts with at least one rollout that could be scored.
            failed: Id -> (number of failures, reason) of prompts without any.

        Returns:
            Ids of the prompts that are newly quarantined.
        """
        for prompt_id in fine:
            self._failures.pop(prompt_id, None)
        quarantined = []
        for prompt_id, (times, why) in failed.items():
            self._failures[prompt_id] = self._failures.get(prompt_id, 0) + times
            if self.after and self._failures[prompt_id] >= self.after:
                del self._failures[prompt_id]
                self.left_out[prompt_id] = why
                quarantined.append(prompt_id)
        return quarantined

    def __contains__(self, prompt_id: object) -> bool:
        return prompt_id in self.left_out

    def metrics(self) -> dict[str, float]:
        """Return the number of quarantined prompts."""
        return {PROMPTS_QUARANTINED: float(len(self.left_out))}

    def to_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"left_out": dict(self.left_out), "failures": dict(self._failures)}

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `to_dict` returned; {} for a state without quarantined prompts."""
        self.left_out, self._failures = dict(state.get("left_out", {})), dict(state.get("failures", {}))
