"""How LoRA adapters enter a vLLM engine. Imports vLLM lazily, like engine.py.

vLLM's own support for adapters is used: one adapter, ADAPTER_ID, is replaced in place between two steps. Requests that run
go on with the new one. What is proved is what is proved of whole weights: checksums of the bytes, all adapters in use,
log-probabilities of the probe, and that they react to a change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kray.errors import KrayError
from kray.rollout.adapter_folder import adapter_folder
from kray.rollout.adapters import AdapterSpec
from kray.weight_sync.flat_weights import FlatWeights

# vLLM's number of the adapter, and its name.
ADAPTER_ID, ADAPTER_NAME = 1, "policy"
# What every element of lora_B becomes where an engine must show that it reacts: far more than a step changes.
PERTURBED_B = 0.5


def adapter_request() -> Any:
    """Return what a request for a rollout names its adapter by."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(ADAPTER_NAME, ADAPTER_ID, ADAPTER_NAME)


def load_adapters(engine: Any, spec: AdapterSpec, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Replace the engine's adapters.

    Args:
        engine: vLLM's LLMEngine.
        spec: What the engine was started for.
        tensors: (name, tensor) of each adapter, by peft's names.

    Raises:
        KrayError: The engine has no layer for an adapter.
    """
    from vllm.lora.request import LoRARequest

    # The public way in takes a folder.
    with adapter_folder() as folder:
        state = dict(tensors)
        targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in state})
        config = {"peft_type": "LORA", "r": spec.rank, "lora_alpha": spec.alpha, "target_modules": targets}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(state, folder / "adapter_model.safetensors")
        engine.add_lora(LoRARequest(ADAPTER_NAME, ADAPTER_ID, str(folder), load_inplace=True))
    for unused in engine.collective_rpc(_unused):
        if unused:
            raise KrayError(f"weights: {len(unused)} adapters have no layer in the engine, first {unused[0]}")


def _unused(worker: Any) -> list[str]:
    """Return the layers of the adapter that the worker's model lacks; runs in the worker."""
    manager = worker.model_runner.lora_manager._adapter_manager
    adapter = manager.get_adapter(ADAPTER_ID)
    return sorted(set(adapter.loras) - set(manager.modules))


def perturbed_adapters(weights: FlatWeights) -> FlatWeights:
    """Return the adapters changed so much that it shows in any probe, also where their product was zero."""
    state = [(n, torch.full_like(t, PERTURBED_B) if ".lora_B." in n else t) for n, t in weights.tensors()]
    return FlatWeights.pack(state)
