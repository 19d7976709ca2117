"""What fits of an engine's numbers that --check counts: given keys and values, sequences and tokens of a step. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kray.config.engine_options import CACHE_KEY, chunks_prompts
from kray.config.memory import GIB, EngineMemory, context_tokens, engine_memory
from kray.config.model_sizes import ModelSizes
from kray.config.schema import KrayConfig
from kray.errors import ConfigError

# Fewer are not proposed: an engine would be too slow.
LEAST_SEQUENCES, LEAST_TOKENS = 16, 1024


def given_cache_fits(config: KrayConfig, engine: EngineMemory, known: int) -> bool:
    """Return whether rollout.vllm.kv_cache_memory_bytes is given and fits; False also where no value of it would.

    Args:
        config: The configuration.
        engine: Its memory, on each GPU.
        known: Bytes of a GPU that the engine may take: rollout.gpu_memory_share does not bound a cache of a given size.

    Raises:
        ConfigError: It does not fit, or holds no sequence; names a value that does.
    """
    given = config.rollout.vllm.get(CACHE_KEY)
    key, tokens = f"rollout.vllm.{CACHE_KEY}", context_tokens(config)
    least, most = engine.token * tokens, known - engine.weights - engine.working
    if given is None or most < least:
        return False
    if given > most:
        raise ConfigError(
            f"{key} {given:,} ({given / GIB:.1f} GiB): a GPU has {known / GIB:.1f} GiB for an engine, of which weights take "
            f"{engine.weights / GIB:.1f} and computing about {engine.working / GIB:.1f}; {key}={most} fits"
        )
    if given < least:
        raise ConfigError(
            f"{key} {given:,} is less than keys and values of one sequence of {tokens:,} tokens; {key}={least} fits one"
        )
    return True


def without_given_cache(config: KrayConfig) -> KrayConfig:
    """Return the configuration without rollout.vllm.kv_cache_memory_bytes."""
    vllm = {name: value for name, value in config.rollout.vllm.items() if name != CACHE_KEY}
    return replace(config, rollout=replace(config.rollout, vllm=vllm))


def smaller_steps(config: KrayConfig, sizes: ModelSizes, known: int) -> Iterator[str]:
    """Yield settings with which an engine holds one sequence because it needs less memory to compute."""
    rollout = config.rollout
    tokens = rollout.vllm.get("max_num_batched_tokens")

    def fits(sequences: int, step: int | None) -> bool:
        vllm: dict[str, Any] = {**rollout.vllm} if step is None else {**rollout.vllm, "max_num_batched_tokens": step}
        changed = replace(config, rollout=replace(rollout, max_sequences=sequences, vllm=vllm))
        return bool(engine_memory(changed, sizes, known).sequences(context_tokens(config)))

    least = LEAST_TOKENS if chunks_prompts(rollout.vllm, rollout.gpus_per_engine) else context_tokens(config)
    fewer = [count for count in _halved(rollout.max_sequences) if count >= LEAST_SEQUENCES]
    shorter = [] if tokens is None else [count for count in _halved(tokens) if count >= least]
    sequences = next((count for count in fewer if fits(count, tokens)), 0)
    step = next(
        (count for count in shorter if count >= rollout.max_sequences and fits(rollout.max_sequences, count)), 0
    )
    if sequences:
        yield f"rollout.max_sequences={sequences} fits one"
    if step:
        yield f"rollout.vllm.max_num_batched_tokens={step} fits one"
    if not sequences and not step:
        both = ((a, b) for b in shorter for a in [rollout.max_sequences, *fewer] if a <= b and fits(a, b))
        for a, b in both:
            yield f"rollout.max_sequences={a} rollout.vllm.max_num_batched_tokens={b} fits one"
            return


def _halved(count: int) -> list[int]:
    """Return the powers of two below a number, the largest first."""
    return [1 << k for k in reversed(range((count - 1).bit_length()))]
