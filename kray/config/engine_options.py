"""Options of vLLM that kray counts with: what they are where `rollout.vllm` leaves them out, and which values fail. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kray.config.schema import RolloutConfig

# Tokens that one step of an engine computes at most, unless more sequences than that run at a time. vLLM would take 2,048 for
# an engine that is no server, and refuses more sequences than tokens.
STEP_TOKENS = 8192
# Options that kray counts with. vLLM would take null for a value of its own, which is not known here.
CACHE_KEY = "kv_cache_memory_bytes"
COUNTED = ("max_num_batched_tokens", CACHE_KEY, "block_size")
# Of no use below 1 either.
POSITIVE = (*COUNTED, "num_gpu_blocks_override", "max_num_scheduled_tokens", "max_num_active_seqs", "stream_interval")


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


def counted_problems(rollout: RolloutConfig, context_tokens: int) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for numbers in rollout.vllm that no engine can be started with.

    Args:
        rollout: The engines.
        context_tokens: Longest prompt plus response.
    """
    options = rollout.vllm
    for name in POSITIVE:
        value = options.get(name)
        if name not in options or (value is None and name not in COUNTED):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            given = "null" if value is None else repr(value)
            yield f"rollout.vllm.{name}", f"rollout.vllm.{name} must be a whole number of 1 or more, not {given}"
            if name == "max_num_batched_tokens":
                return
    key, tokens = "rollout.vllm.max_num_batched_tokens", options.get("max_num_batched_tokens")
    if tokens is not None and tokens < rollout.max_sequences:
        yield (
            key,
            f"{key} {tokens} is below rollout.max_sequences {rollout.max_sequences}, each of which has a token in a step",
        )
    elif tokens is not None and tokens < context_tokens and not chunks_prompts(options, rollout.gpus_per_engine):
        why = f"the {context_tokens} tokens of a prompt and its response, which this engine computes in one step"
        yield key, f"{key} {tokens} is below {why}"
