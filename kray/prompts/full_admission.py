"""Offer every training prompt in every step, and name those that must be visited (plan.candidates 0).

A prompt that is not visited waits. One that has been passed over for max_wait steps is due, and of those that are due the
most_due that have waited longest must be visited. Guarantees, for n prompts:

- a prompt is visited by step s + max_wait + (n - 1) // most_due, where s is the step after its latest visit, or 0: while it is
  due and not visited, each step visits most_due prompts that have waited longer, and each of these goes behind it;
- no step offers a prompt twice, and all steps offer the prompts in the same order, that of the stream's first epoch: equal
  values go to the first.

Pure: `to_dict` is the whole state. A step costs a few passes of numpy over the prompts.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kray.metrics import PROMPTS_LONGEST_GAP, PROMPTS_LONGEST_WAIT, PROMPTS_WAITING
from kray.prompts.sampler import PromptSampler


class FullAdmission:
    """The step of each prompt's latest visit.

    Attributes:
        max_wait: Steps, see the module.
        most_due: Prompts that are due in a step at most.
        longest_wait: Steps for which a prompt was passed over before its visit, so far.
        longest_gap: Steps between two visits of a prompt, so far.
    """

    def __init__(self, stream: PromptSampler, max_wait: int, most_due: int) -> None:
        """Start without visits.

        Args:
            stream: Of the training prompts.
            max_wait: Steps, see the module.
            most_due: Prompts that are due in a step at most.

        Raises:
            ValueError: An argument is out of range.
        """
        if max_wait < 0:
            raise ValueError(f"max_wait must not be negative, not {max_wait}")
        if most_due < 1:
            raise ValueError(f"most_due must be at least 1, not {most_due}")
        self.max_wait, self.most_due = max_wait, most_due
        # (n,) indices of the prompts as they are offered.
        self._order = stream.order(0)
        self._place = np.argsort(self._order)
        # (n,) in this order: the step of the latest visit, -1 before the first.
        self._last = np.full(len(self._order), -1, dtype=np.int64)
        self._visited = 0
        self.longest_wait = 0
        self.longest_gap = 0

    def offer(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices (n,) of all prompts, and which of them are due (n,) bool."""
        due = np.zeros(len(self._last), dtype=bool)
        due[self._due(step)] = True
        return self._order, due

    def visited(self, step: int, indices: ArrayLike) -> None:
        """Record which prompts got rollouts.

        Args:
            step: The step of the last offer.
            indices: Of the visited prompts.

        Raises:
            ValueError: An index is no prompt's, or a prompt that is due is missing.
        """
        rows = np.unique(np.asarray(indices, dtype=np.int64))
        unknown = rows[(rows < 0) | (rows >= len(self._last))]
        if len(unknown):
            raise ValueError(f"indices: {unknown[:5].tolist()} have not been offered")
        places = self._place[rows]
        late = np.setdiff1d(self._due(step), places)
        if len(late):
            raise ValueError(
                f"indices: {self._order[late[:5]].tolist()} are due in step {step} and have not been visited"
            )
        last = self._last[places]
        self.longest_wait = max(self.longest_wait, int((step - last - 1).max(initial=0)))
        self.longest_gap = max(self.longest_gap, int((step - last[last >= 0]).max(initial=0)))
        self._last[places] = step
        self._visited = len(places)

    def _due(self, step: int) -> np.ndarray:
        """Return the places of the prompts that are due, (K,) int64, K <= most_due."""
        late = np.flatnonzero(step - self._last - 1 >= self.max_wait)
        if len(late) > self.most_due:
            # longest wait first, then by place
            age = self._last[late] * len(self._last) + late
            late = late[np.argpartition(age, self.most_due - 1)[: self.most_due]]
        return late

    def skip(self, positions: int) -> None:
        """Do nothing: prompts that were visited before count as not visited yet."""

    def metrics(self) -> dict[str, float]:
        """Return the prompts that the last step passed over, and the longest wait and gap of the run so far, in steps."""
        return {
            PROMPTS_WAITING: float(len(self._last) - self._visited),
            PROMPTS_LONGEST_WAIT: float(self.longest_wait),
            PROMPTS_LONGEST_GAP: float(self.longest_gap),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        by_index = np.empty_like(self._last)
        by_index[self._order] = self._last
        return {
            "version": 1,
            "last": base64.b64encode(zlib.compress(by_index.astype("<i4").tobytes(), 1)).decode(),
            "visited": self._visited,
            "longest": [self.longest_wait, self.longest_gap],
        }

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `to_dict` returned, here or in Admission.

        Raises:
            ValueError: The state has another version, or is of other prompts.
        """
        if state.get("version") != 1:
            raise ValueError(f"waiting prompts of version {state.get('version')!r} cannot be read; this is version 1")
        if "last" in state:
            by_index = last_visits(state)
            if len(by_index) != len(self._last):
                raise ValueError(f"waiting prompts: {len(by_index)} are saved, but there are {len(self._last)}")
            self._last, self._visited = by_index[self._order], int(state["visited"])
        else:
            for index, step in state["visited"]:
                self._last[self._place[int(index)]] = int(step)
        self.longest_wait, self.longest_gap = (int(steps) for steps in state["longest"])


def last_visits(state: Mapping[str, Any]) -> np.ndarray:
    """Return the step of each prompt's latest visit, (n,) int64, -1 without one, from a state of FullAdmission."""
    return np.frombuffer(zlib.decompress(base64.b64decode(state["last"])), dtype="<i4").astype(np.int64)
