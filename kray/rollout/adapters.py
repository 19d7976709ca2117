"""Whether engines get LoRA adapters as adapters or merged into whole weights (rollout.lora). Loads no vLLM.

As adapters the base weights never move: an engine reads them from the model's folder, as the learner does, and an update is
the adapters alone. Merged weights work with every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kray.config import KrayConfig
from kray.config.adapters import RANKS, adapters_impossible
from kray.errors import ConfigError

# Models whose linear layers have the same names in vLLM's source as in transformers; Qwen3 is tested with engines.
ARCHITECTURES = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Adapters that an engine takes.

    Attributes:
        rank: Their rank.
        alpha: The product of the adapters is scaled by alpha / rank.
    """

    rank: int
    alpha: float

    def vllm_options(self) -> dict[str, Any]:
        """Return the options of vLLM's EngineArgs for these adapters."""
        rank = next(rank for rank in RANKS if rank >= self.rank)
        return {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}


def choose_adapters(config: KrayConfig, model_config: Any) -> tuple[AdapterSpec | None, str]:
    """Decide how adapters reach the engines.

    Args:
        config: The configuration.
        model_config: The model's PretrainedConfig.

    Returns:
        The adapters, or None for merged weights, and why engines get merged weights although adapters are trained; "" where
        there is nothing to say.

    Raises:
        ConfigError: rollout.lora is adapter, and engines cannot take them.
    """
    lora, wanted = config.model.lora, config.rollout.lora
    if lora is None or wanted == "merged":
        return None, ""
    impossible = adapters_impossible(config)
    if wanted == "adapter":
        if impossible:
            raise ConfigError(f"rollout.lora adapter: {impossible}; set rollout.lora to merged or auto")
        return AdapterSpec(lora.rank, lora.alpha), ""
    reason = impossible or _unwise(config, model_config)
    return (None, reason) if reason else (AdapterSpec(lora.rank, lora.alpha), "")


def _unwise(config: KrayConfig, model_config: Any) -> str:
    """Return why merged weights are the better choice where adapters are possible; "" when they are not."""
    if not config.rollout.gpus_per_engine:
        return (
            "without a GPU vLLM is slower with adapters than the smaller update saves (rollout.lora adapter uses them)"
        )
    names = getattr(model_config, "architectures", None) or ["unnamed"]
    if names[0] not in ARCHITECTURES:
        return f"vLLM may name the layers of {names[0]} differently (rollout.lora adapter uses adapters all the same)"
    return ""
