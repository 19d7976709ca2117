"""The probe of a run: the tokens by which engines prove their weights, and what the learner computes of them.

It is settled once, while the learner holds the start model, and does not change with the policy.
"""

from __future__ import annotations

import numpy as np

from kray.train.learner_group import LearnerGroup


class Probe:
    """Tokens and the learner's log-probabilities of them.

    Attributes:
        tokens: (P,) token ids; () until they are settled.
        start: (P - 1,) the learner's logprobs of tokens[1:] with the start model; None until they are settled.
    """

    def __init__(self, learners: LearnerGroup, dtype: str, seed: int):
        """Settle nothing.

        Args:
            learners: The learner.
            dtype: Compute dtype. In bfloat16 the second half of the tokens is sampled from the start model: two computations
                agree better on what the policy would say than on random tokens.
            seed: Of these samples.
        """
        self._learners, self._sampled, self._seed = learners, dtype == "bfloat16", seed
        self.tokens: tuple[int, ...] = ()
        self.start: np.ndarray | None = None

    async def settle(self, tokens: tuple[int, ...]) -> None:
        """Fix the probe, while the learner holds the start model; does nothing when called again.

        Args:
            tokens: The first half a prompt's, the second half at random.
        """
        if self.tokens:
            return
        if self._sampled:
            prompt = tokens[: max(1, len(tokens) // 2)]
            tokens = (*prompt, *await self._learners.sample(prompt, len(tokens) - len(prompt), self._seed))
        self.start = await self.logprobs(tokens)
        self.tokens = tokens

    async def logprobs(self, tokens: tuple[int, ...]) -> np.ndarray:
        """Return the learner's (P - 1,) logprobs of tokens[1:], with the weights that it has now."""
        return (await self._learners.logprobs([(tokens[:1], tokens[1:])]))[0]
