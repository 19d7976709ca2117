"""What vLLM can take of LoRA adapters as adapters (rollout.lora). Pure."""

from __future__ import annotations

from kray.config.devices import dtype_of
from kray.config.players import frozen_players
from kray.config.schema import KrayConfig

# Ranks for which vLLM 0.32 has kernels; a smaller adapter is padded.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def adapters_impossible(config: KrayConfig) -> str:
    """Return why engines cannot take the adapters of model.lora as they are; "" when they can."""
    lora = config.model.lora
    assert lora is not None
    if lora.rank > RANKS[-1]:
        return f"vLLM takes adapters up to rank {RANKS[-1]}, model.lora.rank is {lora.rank}"
    if "lm_head" in lora.targets:
        return "vLLM takes no adapter of the output layer (model.lora.targets)"
    if config.rollout.gpus_per_engine and dtype_of(config) == "float32":
        return "vLLM's kernels for adapters on GPUs compute in bfloat16, model.dtype is float32"
    if config.rollout.gpus_per_engine > 1:
        return "adapters of an engine on several GPUs (rollout.gpus_per_engine) have not been tested"
    if config.rollout.colocate:
        return "engines discard the model's weights when they leave the GPU to the learner (rollout.colocate)"
    if frozen_players(config.environment):
        return "an opponent plays with whole weights (environment.roles, environment.evaluate_against)"
    return ""
