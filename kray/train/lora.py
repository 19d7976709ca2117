"""LoRA (arXiv 2106.09685): peft's adapters inside the policy, merged when whole weights leave the learner.

Guarantees: whole weights are ordinary ones, W + (alpha / rank) B A, under their ordinary names. With the
adapters off the model equals the start model bit for bit, so it is its own reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kray.config.schema import LoraConfig
from kray.errors import ConfigError

# Name of the adapter within peft.
ADAPTER = "default"


def add_lora(model: nn.Module, lora: LoraConfig) -> None:
    """Add adapters to the linear layers named by `lora.targets`, and freeze everything else.

    Raises:
        ConfigError: peft is missing, a target names no linear layer, or peft cannot adapt the model.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(f"model.lora needs peft: pip install 'kray[cpu]' or peft itself ({error})") from error
    targets: list[str] | str = "all-linear" if lora.targets == ["all-linear"] else list(lora.targets)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    unknown = [t for t in targets if not any(n.endswith(t) for n in linear)] if isinstance(targets, list) else []
    if unknown:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise ConfigError(f"model.lora.targets: no linear layer is named {unknown[0]!r}; there are {', '.join(known)}")
    options: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": targets}
    config = PeftConfig(**options, lora_dropout=0.0, bias="none")
    try:
        with _on_cpu(model):
            inject_adapter_in_model(config, model, ADAPTER)
    except ValueError as error:
        raise ConfigError(f"model.lora: peft cannot adapt this model: {error}") from error


@contextmanager
def _on_cpu(model: nn.Module) -> Iterator[None]:
    """Within the context, parameters on the meta device are on the CPU, still without memory.

    peft makes a layer's adapter on the device of the layer, and there its start values would be lost.
    """
    places = [(module, name, p) for module in model.modules() for name, p in module._parameters.items()]
    meta = [(module, name, p) for module, name, p in places if p is not None and p.is_meta]
    stands_for = {id(p): nn.Parameter(torch.zeros((), dtype=p.dtype).expand(p.shape)) for _, _, p in meta}
    for module, name, parameter in meta:
        module._parameters[name] = stands_for[id(parameter)]
    try:
        yield
    finally:
        for module, name, parameter in meta:
            parameter.requires_grad_(stands_for[id(parameter)].requires_grad)
            module._parameters[name] = parameter


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "base_layer")]


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Turn the adapters off within the context: the model computes what the start model does."""
    layers = _layers(model)
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


class LoraMerge:
    """Merges one layer's adapter into its base weight; the parts may be sharded."""

    def __init__(self, layer: Any):
        self.a, self.b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        self.scaling = layer.scaling[ADAPTER]

    def __call__(self, weight: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
        """Return W + scaling B A in float32.

        Args:
            weight: The whole base weight W.
            gather: Gathers a sharded tensor; a collective.
        """
        change = gather(self.b.detach()).float() @ gather(self.a.detach()).float()
        return weight.float() + self.scaling * change


def lora_merges(model: nn.Module) -> dict[str, LoraMerge]:
    """Return the merge of each adapted layer, by the base weight's name in the model with adapters."""
    adapted = {id(layer) for layer in _layers(model)}
    return {
        f"{name}.base_layer.weight": LoraMerge(module)
        for name, module in model.named_modules()
        if id(module) in adapted
    }


def plain_name(name: str) -> str | None:
    """Return a parameter's name in the model without adapters; None for the adapters' own parameters."""
    return None if ".lora_" in name else name.replace(".base_layer.", ".")


def peft_name(name: str) -> str:
    """Return the name of an adapter's parameter in a peft folder."""
    return f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}"


def save_adapters(model: nn.Module, lora: LoraConfig, base: str, folder: Path) -> None:
    """Write the adapters as a peft folder.

    Args:
        model: The model with adapters, not sharded.
        lora: The adapters' settings.
        base: Folder or hub id of the base model, noted in the folder.
        folder: Where to write; made when missing.
    """
    from peft import LoraConfig as PeftConfig

    tensors = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            tensors[peft_name(name)] = parameter.detach().contiguous()
    targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors})
    options: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": targets}
    config = PeftConfig(**options, task_type="CAUSAL_LM", base_model_name_or_path=base, inference_mode=True)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
