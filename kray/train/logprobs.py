"""Log-probability and entropy of tokens, without holding the logits of all of them at once.

`score` becomes a method of the sharded model, so that FSDP gathers and frees parameters around it as around `forward`.

Shape suffixes: K places whose hidden state predicts something, D hidden size, V vocabulary, N targets.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint

# Logits held in float32 at once: 256 MiB.
CHUNK_ELEMENTS = 2**26


def _chunk(
    head: Any, hidden_KD: Tensor, source_N: Tensor, targets_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits_KV = head(hidden_KD).float()
    if temperature != 1:
        logits_KV = logits_KV / temperature
    norm_K = logits_KV.logsumexp(-1)
    logprobs_N = logits_KV[source_N, targets_N] - norm_K[source_N]
    with torch.no_grad():
        probabilities_KV = torch.exp(logits_KV - norm_K[:, None])
        # A logit of -inf has probability 0 and adds nothing; 0 * inf would be NaN.
        entropy_K = norm_K - torch.where(probabilities_KV > 0, probabilities_KV * logits_KV, 0.0).sum(-1)
    return logprobs_N, entropy_K[source_N]


def logprobs_and_entropy(
    head: Any,
    hidden_KD: Tensor,
    source_N: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    vocabulary: int = 1,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """Compute the log-probability of each target and the entropy of the distribution it was predicted by.

    Args:
        head: (K, D) hidden states -> (K, V) logits.
        hidden_KD: (K, D) hidden states.
        source_N: (N,) int64, sorted; row of hidden_KD that predicts target n.
        targets_N: (N,) int64 tokens.
        temperature: Divides the logits, as in the engine that sampled.
        vocabulary: V.
        chunk_elements: Most logits in memory at once, also in the backward pass, which recomputes them chunk by chunk.

    Returns:
        Log-probabilities and entropies, (N,) float32 each, in nats; the entropy carries no gradient.
    """
    size = max(1, chunk_elements // max(1, vocabulary))
    if len(hidden_KD) <= size:
        return _chunk(head, hidden_KD, source_N, targets_N, temperature)
    starts = list(range(0, len(hidden_KD), size))
    cuts = torch.searchsorted(source_N, torch.tensor([*starts, len(hidden_KD)], device=source_N.device)).tolist()
    parts = []
    for start, first, last in zip(starts, cuts[:-1], cuts[1:], strict=True):
        inputs = (head, hidden_KD[start : start + size], source_N[first:last] - start, targets_N[first:last])
        parts.append(checkpoint(_chunk, *inputs, temperature, use_reentrant=False))
    return torch.cat([logprobs for logprobs, _ in parts]), torch.cat([entropy for _, entropy in parts])


def _score(
    model: Any,
    inputs: dict[str, Any],
    keep_K: Tensor,
    source_N: Tensor,
    targets_N: Tensor,
    temperature: float,
    all_logits: bool,
) -> tuple[Tensor, Tensor]:
    """Compute `logprobs_and_entropy` at the places keep_K (K,) of the flattened (B * T) tokens.

    `all_logits` goes through the model's own forward pass, for models that do more than apply a linear layer to hidden
    states.
    """
    if all_logits:
        logits = model.forward(**inputs, use_cache=False).logits.flatten(0, 1)[keep_K]
        return logprobs_and_entropy(
            lambda logits_KV: logits_KV, logits, source_N, targets_N, temperature, logits.shape[-1]
        )
    hidden = model.base_model(**inputs, use_cache=False)[0].flatten(0, 1)[keep_K]
    config = model.config.get_text_config()
    # Gemma 2.
    softcap = getattr(config, "final_logit_softcapping", None)

    def head(hidden_KD: Tensor) -> Tensor:
        logits = model.get_output_embeddings()(hidden_KD)
        return torch.tanh(logits / softcap) * softcap if softcap else logits

    return logprobs_and_entropy(head, hidden, source_N, targets_N, temperature, config.vocab_size)


def add_score_method(model: Any) -> None:
    """Give the sharded model the method `score(inputs, keep_K, source_N, targets_N, temperature, all_logits)`."""
    model.score = MethodType(_score, model)
    register_fsdp_forward_method(model, "score")
