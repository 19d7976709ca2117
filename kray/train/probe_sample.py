"""Samples tokens from the policy that a learner holds, for the probe by which engines prove their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from kray.train.packing import collate
from kray.train.training_rows import unscored_rows


@torch.no_grad()
def sample_tokens(learner: Any, prompt: Sequence[int], count: int, seed: int) -> tuple[int, ...]:
    """Continue a prompt by sampled tokens, at temperature 1 and past the end of a response. A collective.

    It takes one forward pass for each token, without a cache: for a few tokens, once in a run.

    Args:
        learner: A `Learner`.
        prompt: At least one token.
        count: Tokens to sample.
        seed: Same seed, same policy: same tokens.

    Returns:
        (count,) token ids.
    """
    vocabulary = learner.model.config.get_text_config().vocab_size
    noise = np.random.default_rng(seed)
    tokens = list(prompt)
    try:
        for _ in range(count):
            # One target, of which only the place counts: the score of every token is asked for there.
            batch = collate(unscored_rows([(tokens, (0,))]), np.arange(1), learner.layout.packed)
            whole = replace(batch, source=torch.zeros(vocabulary, dtype=torch.int64), targets=torch.arange(vocabulary))
            logprobs = learner._forward(learner._placed(whole), 1.0)[0].double().cpu().numpy()
            # The maximum of log-probabilities plus Gumbel noise is a sample.
            tokens.append(int(np.argmax(logprobs + noise.gumbel(size=vocabulary))))
    finally:
        learner.model.reshard()
    return tuple(tokens[len(prompt) :])
