"""Choose the prompts that each step visits.

The stream of prompts is a sequence of epochs, each a permutation of all prompts; step s takes positions
[s * per_step, (s + 1) * per_step) of the stream. Guarantees:

- each epoch holds every prompt exactly once, so in any prefix of n positions a prompt occurs floor(n / prompts) times or
  once more;
- no step holds a prompt twice, even across two epochs: the beginning of the later epoch is reordered for that;
- the stream is a function of (number of prompts, per_step, seed, shuffle), so that the step suffices to resume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kray.records import derive_seed


class PromptSampler:
    """Visits prompts by index.

    Attributes:
        prompts: Number of prompts.
        per_step: Prompts per step.
        seed: Seed of the epochs' orders.
        shuffle: Whether epochs are shuffled.
    """

    def __init__(self, prompt_ids: Sequence[str], per_step: int, seed: int, shuffle: bool = True) -> None:
        """Create the sampler.

        Args:
            prompt_ids: Ids of the prompts, which must differ.
            per_step: Prompts per step.
            seed: Seed of the epochs' orders.
            shuffle: Whether to shuffle epochs; False visits prompts in the given order each epoch.

        Raises:
            ValueError: An id occurs twice, or a step cannot be filled.
        """
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
        # Epoch -> its order, of the last two.
        self._known: dict[int, np.ndarray] = {}

    def take(self, step: int) -> list[int]:
        """Return the step's prompts: (per_step,) distinct indices into prompt_ids."""
        epoch = self.epoch(step)
        start = step * self.per_step - epoch * self.prompts
        taken = list(self._order(epoch)[start : start + self.per_step])
        if len(taken) < self.per_step:
            taken += list(self._order(epoch + 1)[: self.per_step - len(taken)])
        assert len(set(taken)) == self.per_step, "a step holds a prompt twice"
        return [int(index) for index in taken]

    def epoch(self, step: int) -> int:
        """Return the epoch of the step's first prompt: the number of epochs that are complete before it."""
        if step < 0:
            raise ValueError(f"step must not be negative, not {step}")
        return step * self.per_step // self.prompts

    def order(self, epoch: int) -> np.ndarray:
        """Return the epoch's order, (prompts,) int64 indices into prompt_ids."""
        return self._order(epoch).copy()

    def _carried(self, epoch: int) -> int:
        """Return how many prompts of the epoch before are in the step that reaches into this one; 0 without such a step."""
        return epoch * self.prompts % self.per_step

    def _order(self, epoch: int) -> np.ndarray:
        """Return the epoch's order, (prompts,) int64.

        It depends on the end of the epoch before. Reordering affects only the first per_step positions, so with at least
        2 * per_step prompts that end is the permutation's; with fewer, orders are computed from the last epoch that begins
        with a step, at most per_step epochs back.
        """
        if epoch in self._known:
            return self._known[epoch]
        first = epoch
        shortest = 1 if self.prompts >= 2 * self.per_step else self.per_step
        while self._carried(first) and epoch - first < shortest and first - 1 not in self._known:
            first -= 1
        before = self._known.get(first - 1)
        # Without an order before it, only the end of `first` is used, which needs no reordering.
        order = self._permutation(first) if before is None else self._joined(before, first)
        for current in range(first + 1, epoch + 1):
            order = self._joined(order, current)
        self._known = {e: o for e, o in self._known.items() if e in (epoch - 1, epoch + 1)} | {epoch: order}
        return order

    def _joined(self, before: np.ndarray, epoch: int) -> np.ndarray:
        """Return the epoch's permutation with the prompts that its first step already holds moved behind that step."""
        order = self._permutation(epoch)
        carried = self._carried(epoch)
        if not carried:
            return order
        head = self.per_step - carried
        fresh = ~np.isin(order[: self.per_step], before[-carried:])
        window = order[: self.per_step]
        # At most `carried` of the window are not fresh, so enough remain.
        chosen = np.flatnonzero(fresh)[:head]
        rest = np.ones(self.per_step, dtype=bool)
        rest[chosen] = False
        order[: self.per_step] = np.concatenate([window[chosen], window[rest]])
        return order

    def _permutation(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.prompts)
        # numpy keeps raw bits stable over versions, but not its permutation().
        keys = np.random.PCG64(derive_seed("prompts", self.seed, epoch)).random_raw(self.prompts)
        return np.argsort(keys, kind="stable")
