"""Prompts that are offered and may be passed over, none of them for long.

Where the planner admits prompts (plan.candidates > 1), a step offers more than it visits. Those left out wait, and are offered
again before fresh ones. Laws:
- a prompt offered for the first time in step s is visited by step s + max_wait: from then on it is `due`;
- after a resume with fewer candidates more prompts may wait than a step offers: they are offered oldest first, and one
  whose time has passed is due in the first step that offers it;
- fresh prompts come in the order of the stream (sampler.py), each epoch once, so a prompt is visited as often as it is offered:
  in a stream of n prompts taken at `visited` a step, two of its visits lie at most 2 n / visited + max_wait steps apart;
- no step offers a prompt twice: a prompt whose next turn comes while it waits keeps its old place, and loses that turn.
Pure: the whole state is `to_dict`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from kray.metrics import PROMPTS_LONGEST_GAP, PROMPTS_LONGEST_WAIT, PROMPTS_WAITING
from kray.prompts.sampler import PromptSampler


class Admission:
    """stream: a PromptSampler with per_step 1; candidates: prompts offered a step; max_wait: steps, see above."""

    def __init__(self, stream: PromptSampler, candidates: int, max_wait: int) -> None:
        if stream.per_step != 1:
            raise ValueError(f"stream must have per_step 1, not {stream.per_step}")
        if not 1 <= candidates <= stream.prompts:
            raise ValueError(f"candidates must lie in [1, {stream.prompts}], the number of prompts; got {candidates}")
        if max_wait < 0:
            raise ValueError(f"max_wait must not be negative, not {max_wait}")
        self.stream, self.candidates, self.max_wait = stream, candidates, max_wait
        self._position = 0  # in the stream
        self._since: dict[int, int] = {}  # index of a waiting prompt -> the step that first offered it, oldest first
        self._visited: dict[int, int] = {}  # index -> step of its latest visit
        self.longest_wait = 0  # steps from a prompt's first offer to its visit, so far
        self.longest_gap = 0  # steps between two visits of a prompt, so far

    def offer(self, step: int) -> tuple[list[int], list[bool]]:
        """The step's candidates, distinct indices, those that wait longest first, and which of them are due.

        To be followed by `visited` of the same step; asking again before that gives the same answer.
        """
        while len(self._since) < self.candidates:
            index = self.stream.take(self._position)[0]
            self._position += 1
            self._since.setdefault(index, step)
        offered = list(self._since)[: self.candidates]
        return offered, [step - self._since[index] >= self.max_wait for index in offered]

    def visited(self, step: int, indices: Iterable[int]) -> None:
        """These candidates have got rollouts; the others wait. ValueError when one was not offered or a due one is missing."""
        done = set(indices)
        strange = done - self._since.keys()
        if strange:
            raise ValueError(f"indices: {sorted(strange)[:5]} have not been offered")
        offered = islice(self._since.items(), self.candidates)
        late = [i for i, since in offered if step - since >= self.max_wait and i not in done]
        if late:
            raise ValueError(f"indices: {late[:5]} are due in step {step} and have not been visited")
        for index in sorted(done):
            self.longest_wait = max(self.longest_wait, step - self._since.pop(index))
            self.longest_gap = max(self.longest_gap, step - self._visited.get(index, step))
            self._visited[index] = step

    def skip(self, positions: int) -> None:
        """Begins at this position of the stream: the prompts before it were visited without waiting."""
        self._position = positions

    def metrics(self) -> dict[str, float]:
        """prompts/waiting: prompts; prompts/longest_wait and prompts/longest_gap: steps, over the run so far."""
        return {
            PROMPTS_WAITING: float(len(self._since)),
            PROMPTS_LONGEST_WAIT: float(self.longest_wait),
            PROMPTS_LONGEST_GAP: float(self.longest_gap),
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": 1,
            "position": self._position,
            "since": list(self._since.items()),
            "visited": list(self._visited.items()),
            "longest": [self.longest_wait, self.longest_gap],
        }

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `to_dict` wrote; ValueError on another version."""
        if state.get("version") != 1:
            raise ValueError(f"waiting prompts of version {state.get('version')!r} cannot be read; this is version 1")
        self._position = int(state["position"])
        self._since = {int(index): int(step) for index, step in state["since"]}
        self._visited = {int(index): int(step) for index, step in state["visited"]}
        self.longest_wait, self.longest_gap = state["longest"]
