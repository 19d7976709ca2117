"""Options of vLLM that kray counts with: what they are where `rollout.vllm` leaves them out, and which values fail. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Tokens that one step of an engine computes at most, unless more sequences than that run at a time. vLLM would take 2,048 for
# an engine that is no server, and refuses more sequences than tokens.
STEP_TOKENS = 8192


def chunks_prompts(options: Mapping[str, Any], gpus: int) -> bool:
    """Return whether an engine may compute a prompt in several steps.

    Args:
        options: rollout.vllm.
        gpus: rollout.gpus_per_engine; kray turns it off on CPU.
    """
    return options.get("enable_chunked_prefill", gpus > 0) is not False


def step_tokens(options: Mapping[str, Any], gpus: int, max_sequences: int, context_tokens: int) -> int:
    """Return the most tokens that one step of an engine computes.

    Args:
        options: rollout.vllm, whose max_num_batched_tokens comes first.
        gpus: rollout.gpus_per_engine.
        max_sequences: Each running sequence has a token in a step.
        context_tokens: Longest prompt plus response: without chunks a prompt must fit into one step.
    """
    given = options.get("max_num_batched_tokens")
    if given is not None:
        return int(given)
    return max(STEP_TOKENS, max_sequences, 0 if chunks_prompts(options, gpus) else context_tokens)
