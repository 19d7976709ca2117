"""Offer the planner candidates of which it may skip some, none for long.

Where the planner admits prompts (plan.candidates > 1), a step offers more prompts than it visits. Skipped prompts wait and
are offered again before new ones. Guarantees:

- a prompt first offered in step s is visited by step s + max_wait, when it is `due`; where a step pays for most_due prompts
  only and more have waited so long, those that have waited longest are due first, and each is visited by step
  s + max_wait + (candidates - 1) // most_due;
- after a resume with fewer candidates more prompts may wait than a step offers: they are offered oldest first, and one
  whose time has passed is due in the first step that offers it;
- new prompts come in the order of the stream (sampler.py), each epoch once, so a prompt is visited as often as it is offered:
  in a stream of n prompts of which `visited` are taken per step, two visits are at most 2 n / visited + max_wait steps apart;
- no step offers a prompt twice: a prompt whose next turn comes while it waits keeps its place and loses that turn.

Pure: `to_dict` is the whole state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from kray.metrics import PROMPTS_LONGEST_GAP, PROMPTS_LONGEST_WAIT, PROMPTS_WAITING
from kray.prompts.full_admission import last_visits
from kray.prompts.sampler import PromptSampler


class Admission:
    """The waiting prompts.

    Attributes:
        stream: Source of new prompts.
        candidates: Prompts offered per step.
        max_wait: Steps, see the module.
        most_due: Prompts that are due in a step at most.
        longest_wait: Steps from a prompt's first offer to its visit, so far.
        longest_gap: Steps between two visits of a prompt, so far.
    """

    def __init__(self, stream: PromptSampler, candidates: int, max_wait: int, most_due: int | None = None) -> None:
        """Start at the beginning of the stream.

        Args:
            stream: A PromptSampler with per_step 1.
            candidates: Prompts offered per step.
            max_wait: Steps, see the module.
            most_due: Prompts that are due in a step at most; None: any number.

        Raises:
            ValueError: An argument is out of range.
        """
        if stream.per_step != 1:
            raise ValueError(f"stream must have per_step 1, not {stream.per_step}")
        if not 1 <= candidates <= stream.prompts:
            raise ValueError(f"candidates must lie in [1, {stream.prompts}], the number of prompts; got {candidates}")
        if max_wait < 0:
            raise ValueError(f"max_wait must not be negative, not {max_wait}")
        self.stream, self.candidates, self.max_wait = stream, candidates, max_wait
        self.most_due = candidates if most_due is None else most_due
        # Position in the stream.
        self._position = 0
        # Index of a waiting prompt -> the step that first offered it, oldest first.
        self._since: dict[int, int] = {}
        # Index -> step of its latest visit.
        self._visited: dict[int, int] = {}
        self.longest_wait = 0
        self.longest_gap = 0

    def offer(self, step: int) -> tuple[list[int], list[bool]]:
        """Return the step's candidates.

        To be followed by `visited` of the same step; repeated calls before that return the same.

        Returns:
            (distinct indices of prompts, those that have waited longest first; for each whether it is due).
        """
        while len(self._since) < self.candidates:
            index = self.stream.take(self._position)[0]
            self._position += 1
            self._since.setdefault(index, step)
        offered = list(self._since)[: self.candidates]
        late = [step - self._since[index] >= self.max_wait for index in offered[: self.most_due]]
        return offered, late + [False] * (len(offered) - len(late))

    def visited(self, step: int, indices: Iterable[int]) -> None:
        """Record which candidates got rollouts; the others wait.

        Args:
            step: The step of the last offer.
            indices: Of the visited prompts.

        Raises:
            ValueError: A prompt was not offered, or a due one is missing.
        """
        done = set(indices)
        unknown = done - self._since.keys()
        if unknown:
            raise ValueError(f"indices: {sorted(unknown)[:5]} have not been offered")
        offered = islice(self._since.items(), min(self.candidates, self.most_due))
        late = [i for i, since in offered if step - since >= self.max_wait and i not in done]
        if late:
            raise ValueError(f"indices: {late[:5]} are due in step {step} and have not been visited")
        for index in sorted(done):
            self.longest_wait = max(self.longest_wait, step - self._since.pop(index))
            self.longest_gap = max(self.longest_gap, step - self._visited.get(index, step))
            self._visited[index] = step

    def skip(self, positions: int) -> None:
        """Continue at this position of the stream: the prompts before it were visited without waiting."""
        self._position = positions

    def metrics(self) -> dict[str, float]:
        """Return the number of waiting prompts, and the longest wait and gap of the run so far, in steps."""
        return {
            PROMPTS_WAITING: float(len(self._since)),
            PROMPTS_LONGEST_WAIT: float(self.longest_wait),
            PROMPTS_LONGEST_GAP: float(self.longest_gap),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "version": 1,
            "position": self._position,
            "since": list(self._since.items()),
            "visited": list(self._visited.items()),
            "longest": [self.longest_wait, self.longest_gap],
        }

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `to_dict` returned, here or in FullAdmission.

        Raises:
            ValueError: The state has another version.
        """
        if state.get("version") != 1:
            raise ValueError(f"waiting prompts of version {state.get('version')!r} cannot be read; this is version 1")
        if "last" in state:
            # All prompts were offered in every step (plan.candidates 0): the stream begins again.
            known = last_visits(state).tolist()
            self._position, self._since = 0, {}
            self._visited = {index: step for index, step in enumerate(known) if step >= 0}
        else:
            self._position = int(state["position"])
            self._since = {int(index): int(step) for index, step in state["since"]}
            self._visited = {int(index): int(step) for index, step in state["visited"]}
        self.longest_wait, self.longest_gap = state["longest"]
