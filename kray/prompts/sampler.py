"""The sampler: which prompts each step visits.

The stream of prompts is epoch after epoch, each a permutation of all prompts; step s takes positions
[s * per_step, (s + 1) * per_step) of the stream. Laws:
- each epoch holds every prompt exactly once, so in any prefix of n positions a prompt occurs floor(n / prompts) times or
  once more;
- no step holds a prompt twice, also where it straddles two epochs: the later epoch's head is reordered for that;
- the stream is a function of (number of prompts, per_step, seed, shuffle): to resume, the step is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kray.records import derive_seed


class PromptSampler:
    """Walks prompts by index.

    prompt_ids: for their number, and checked to differ; per_step: prompts a step; seed: of the epochs' orders;
    shuffle: False visits them in the given order each epoch. Raises ValueError when a step cannot be filled.
    """

    def __init__(self, prompt_ids: Sequence[str], per_step: int, seed: int, shuffle: bool = True) -> None:
        if len(set(prompt_ids)) != len(prompt_ids):
            raise ValueError("prompt_ids: an id occurs twice")
        if per_step < 1:
            raise ValueError(f"per_step must be at least 1, not {per_step}")
        if per_step > len(prompt_ids):
            raise ValueError(f"per_step is {per_step}, but there are only {len(prompt_ids)} prompts")
        self.prompts = len(prompt_ids)
        self.per_step = per_step
        self.seed = seed
        self.shuffle = shuffle
        self._known: dict[int, np.ndarray] = {}  # epoch -> its order, the last two

    def take(self, step: int) -> list[int]:
        """The step's prompts, (per_step,) distinct indices into prompt_ids."""
        epoch = self.epoch(step)
        start = step * self.per_step - epoch * self.prompts
        taken = list(self._order(epoch)[start : start + self.per_step])
        if len(taken) < self.per_step:
            taken += list(self._order(epoch + 1)[: self.per_step - len(taken)])
        assert len(set(taken)) == self.per_step, "a step holds a prompt twice"
        return [int(index) for index in taken]

    def epoch(self, step: int) -> int:
        """The epoch of the step's first prompt: how many epochs are complete before it."""
        if step < 0:
            raise ValueError(f"step must not be negative, not {step}")
        return step * self.per_step // self.prompts

    def _carried(self, epoch: int) -> int:
        """Prompts of the epoch before in the step that straddles into this one; 0 when none does."""
        return epoch * self.prompts % self.per_step

    def _order(self, epoch: int) -> np.ndarray:
        """The epoch's order, (prompts,) int64.

        It depends on the tail of the epoch before. Reordering touches only the first per_step positions, so with
        2 * per_step prompts or more that tail is the raw permutation's; with fewer, the orders are built up from the last
        epoch that begins with a step, at most per_step epochs back.
        """
        if epoch in self._known:
            return self._known[epoch]
        first = epoch
        shortest = 1 if self.prompts >= 2 * self.per_step else self.per_step
        while self._carried(first) and epoch - first < shortest and first - 1 not in self._known:
            first -= 1
        before = self._known.get(first - 1)
        # Without an order before it, the tail of `first` is all that is used, and that needs no reordering.
        order = self._permutation(first) if before is None else self._joined(before, first)
        for current in range(first + 1, epoch + 1):
            order = self._joined(order, current)
        self._known = {e: o for e, o in self._known.items() if e in (epoch - 1, epoch + 1)} | {epoch: order}
        return order

    def _joined(self, before: np.ndarray, epoch: int) -> np.ndarray:
        """The epoch's permutation with what the straddling step already holds moved behind that step."""
        order = self._permutation(epoch)
        carried = self._carried(epoch)
        if not carried:
            return order
        head = self.per_step - carried
        fresh = ~np.isin(order[: self.per_step], before[-carried:])
        window = order[: self.per_step]
        chosen = np.flatnonzero(fresh)[:head]  # at most `carried` of the window are not fresh: enough remain
        rest = np.ones(self.per_step, dtype=bool)
        rest[chosen] = False
        order[: self.per_step] = np.concatenate([window[chosen], window[rest]])
        return order

    def _permutation(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.prompts)
        # A sort of raw bits: numpy keeps these stable over versions, its permutation() not.
        keys = np.random.PCG64(derive_seed("prompts", self.seed, epoch)).random_raw(self.prompts)
        return np.argsort(keys, kind="stable")
