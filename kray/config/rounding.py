"""Engines that compute with 8-bit numbers: which options of vLLM make them so, and what else follows. Pure.

Such an engine samples from a policy that differs from the learner's by rounding. Its own log-probabilities are recorded, so
that truncated importance weights (`train.tis`, kray/train/loss.py) correct for the difference; they are on by default. The
probe that proves an engine's weights is allowed the rounding: ROUNDED_TOLERANCE.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kray.config.schema import KrayConfig
from kray.config.train_schema import TIS_CAP

# Schemes in which vLLM rounds weights that reach it in bfloat16, of the linear layers within decoder layers.
QUANTIZATIONS = ("fp8_per_tensor", "fp8_per_channel", "fp8_per_block")
# Types of keys and values of 8 bits.
KV_DTYPES = ("fp8", "fp8_e4m3", "fp8_e5m2")
# Nats, mean absolute difference over the probe's tokens, in place of rollout.probe_tolerance 0. Measured with SmolLM2-135M:
# .15 on responses of its own and .40 on random tokens with 8-bit weights and inputs of linear layers (simulated), .34 on
# random tokens with 8-bit keys and values (vLLM on CPU). Weights that are not the learner's are further off.
ROUNDED_TOLERANCE = 1.0


def rounds_weights(options: Mapping[str, Any]) -> bool:
    """Return whether rollout.vllm makes engines hold weights of 8 bits."""
    return options.get("quantization") is not None


def rounds_cache(options: Mapping[str, Any]) -> bool:
    """Return whether rollout.vllm makes engines hold keys and values of 8 bits."""
    return options.get("kv_cache_dtype", "auto") != "auto"


def rounding_problems(options: Mapping[str, Any], gpus: int) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for options of rollout.vllm that no engine can be started with.

    Args:
        options: rollout.vllm.
        gpus: rollout.gpus_per_engine.
    """
    choices: dict[str, tuple[str | None, ...]] = {
        "quantization": (None, *QUANTIZATIONS),
        "kv_cache_dtype": ("auto", *KV_DTYPES),
    }
    for name, known in choices.items():
        key = f"rollout.vllm.{name}"
        if name in options and options[name] not in known:
            named = ", ".join("null" if each is None else each for each in known)
            yield key, f"{key} must be one of {named}, not {options[name]!r}: weights reach engines in model.dtype"
        elif name == "quantization" and rounds_weights(options) and not gpus:
            yield key, f"{key} {options[name]} needs engines on GPUs: vLLM has no 8-bit products on CPU"


def settle_rounding(config: KrayConfig, begun: KrayConfig | None) -> None:
    """Set, in place, the importance weights and the tolerance that the configuration leaves to how engines compute.

    Args:
        config: The configuration, all values of the right type.
        begun: Of the run that is resumed: it goes on with its importance weights.
    """
    options = config.rollout.vllm
    rounded = rounds_weights(options) or rounds_cache(options)
    if config.train.tis is None and begun is not None:
        config.train.tis = begun.train.tis
    if config.train.tis is None:
        config.train.tis = TIS_CAP if rounded else 0.0
    if rounded and not config.rollout.probe_tolerance:
        config.rollout.probe_tolerance = ROUNDED_TOLERANCE
