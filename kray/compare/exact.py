"""Exact success rates, where an answer can be given in one way only: the probability of its tokens and of the end.

No sampling noise, at the price of one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kray.errors import ConfigError
from kray.records import EncodedPrompt
from kray.train.learner_group import LearnerGroup

ROWS = 512  # of one call to the learner

Row = tuple[tuple[int, ...], tuple[int, ...]]  # prompt tokens, response tokens


class ExactRates:
    """Computes exact success rates: the probability of all responses that are scored as correct."""

    def __init__(self, learners: LearnerGroup, tokenizer: Any, stop_ids: Sequence[int], max_tokens: int):
        """Take what the rates depend on.

        Args:
            learners: Compute the logprobs.
            tokenizer: The policy's, one token a character.
            stop_ids: Tokens that end a response.
            max_tokens: Of a response, after which it is cut and needs no end.
        """
        self.learners, self.tokenizer, self.stop_ids, self.max_tokens = learners, tokenizer, tuple(stop_ids), max_tokens

    async def of(self, prompts: list[EncodedPrompt], temperature: float) -> np.ndarray:
        """Return the learner's probability of answering each prompt correctly.

        Must not be called while the learner updates.

        Returns:
            (M,) float64.
        """
        rows: list[Row] = []
        owner: list[int] = []
        for m, (prompt, tokens) in enumerate(prompts):
            for response in self._responses(prompt.answer):
                rows.append((tokens, response))
                owner.append(m)
        found = np.zeros(len(prompts))
        for start in range(0, len(rows), ROWS):
            part = await self.learners.logprobs(rows[start : start + ROWS], temperature)
            sums = [float(np.exp(logprobs.astype(np.float64).sum())) for logprobs in part]
            np.add.at(found, owner[start : start + ROWS], sums)
        return np.minimum(found, 1.0)

    def _responses(self, answer: str) -> list[tuple[int, ...]]:
        """Return all token sequences that are scored as correct; ConfigError where the answer has several spellings."""
        tokens = tuple(self.tokenizer(answer, add_special_tokens=False)["input_ids"])
        if len(tokens) != len(answer):
            raise ConfigError(f"exact: true needs a tokenizer of characters: {answer!r} has {len(tokens)} tokens")
        if len(tokens) > self.max_tokens:
            return []
        return [tokens] if len(tokens) == self.max_tokens else [(*tokens, stop) for stop in self.stop_ids]
