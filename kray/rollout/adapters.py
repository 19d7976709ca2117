"""Whether engines get LoRA adapters as adapters or merged into whole weights (rollout.lora). Loads no vLLM.

As adapters the base weights never move: an engine reads them from the model's folder, as the learner does, and an update is
the adapters alone. Merged weights work with every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kray.config import KrayConfig
from kray.config.adapters import RANKS


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


def adapters_of(config: KrayConfig) -> AdapterSpec | None:
    """Return the adapters that engines take, None where they get whole weights; `config` is a valid one."""
    lora = config.model.lora
    return AdapterSpec(lora.rank, lora.alpha) if lora is not None and config.rollout.lora == "adapter" else None
