"""The policy as a torch model: loading, sharding with FSDP2, gathering and exporting.

Guarantees
- Master parameters are float32 whatever the compute dtype is.
- A gathered state lists every parameter once, in the model's own fixed order; a tied output layer is not repeated.
- After a forward pass without a backward pass the caller must call `reshard`: otherwise FSDP2 keeps the root's parameters
  gathered, and the next forward pass reads stale ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from kray.config.schema import LoraConfig
from kray.errors import ConfigError, KrayError
from kray.train.lora import add_lora, lora_merges, plain_name
from kray.train.supported_models import check_supported

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# transformers' name of the attention that a model's own code computes.
OWN = "eager"

# A job's stdout is not a terminal.
transformers_logging.disable_progress_bar()

# Files of a tokenizer and a generation config in a Hugging Face folder.
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "generation_config.json",
    "spiece.model",
    "tekken.json",
)


def load_policy(
    path: str,
    dtype: str = "float32",
    lora: LoraConfig | None = None,
    empty: bool = False,
    checked: bool = True,
) -> Any:
    """Load a model on the CPU, its parameters in float32, with its own attention (see `set_attention`).

    The model stays in eval mode: dropout, skipped layers and router noise would move log-probabilities, and the ratio of
    new to old ones must come from the weights alone.

    Args:
        path: A Hugging Face folder or a hub id.
        dtype: Compute dtype, kept in the config for exports.
        lora: Adds adapters and freezes everything else.
        empty: Whether parameters get a shape but no memory.
        checked: Whether models that kray does not train are refused. Exports also accept what earlier versions trained.

    Raises:
        ConfigError: The dtype, path or model cannot be used.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"model.dtype is {dtype!r}; known: {', '.join(DTYPES)}")
    try:
        config = AutoConfig.from_pretrained(path)
        if checked:
            check_supported(config)
        if empty:
            with _without_memory():
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=OWN)
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=OWN)
    except (KrayError, MemoryError):
        raise
    except Exception as error:
        # Dozens of kinds: KeyError for an unknown kind of positions, RuntimeError for shapes that differ, ...
        why = str(error) if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"model.path {path!r} cannot be loaded: {why}") from error
    model.config.use_cache = False
    if lora is not None:
        add_lora(model, lora)
    return model.eval()


def set_attention(model: Any, name: str) -> bool:
    """Set the attention function of a model.

    Models that do not look their attention up in transformers' interface can only compute OWN.

    Args:
        model: The model, sharded or not.
        name: Name of a function registered with transformers, or OWN.

    Returns:
        Whether the model now computes attention by this function.
    """
    # The class that FSDP makes around the model's has no source code for transformers to inspect.
    kind = next(k for k in type(model).__mro__ if issubclass(k, PreTrainedModel) and not issubclass(k, FSDPModule))
    if not kind._can_set_attn_implementation():
        return name == OWN
    model.set_attn_implementation(name)
    return True


@contextmanager
def _without_memory() -> Iterator[None]:
    """Within the context, parameters of new modules are made on the meta device; buffers are computed as usual."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the ModuleList that holds the most parameters: the decoder layers, under whatever name.

    Raises:
        ConfigError: The model has no such list.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise ConfigError(f"model.path: {type(model).__name__} has no list of layers that could be sharded")
    return max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))


def state_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return (name, sharded tensor) of every parameter once, then of the persistent buffers, in a fixed order."""
    # A tied parameter comes under its first name only.
    named = list(model.named_parameters())
    persistent = model.state_dict().keys()
    return named + [(name, buffer) for name, buffer in model.named_buffers() if name in persistent]


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what a checkpoint holds of the model: `model.<name>` -> live sharded tensor of all that is not frozen.

    Frozen parameters are the start model's, so a LoRA checkpoint is small.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {f"model.{name}": tensor for name, tensor in state_tensors(model) if name not in frozen}


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor: itself where one rank holds all of it, else gathered. A collective."""
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.full_tensor() if is_divided(tensor) else tensor.to_local()


def is_divided(tensor: Tensor) -> bool:
    """Return whether several ranks hold parts or copies of a tensor."""
    return isinstance(tensor, DTensor) and tensor.device_mesh.size() > 1


class WeightSource:
    """The state as it leaves the learner, adapters merged, tensor by tensor.

    Attributes:
        dtype: Dtype of floating-point tensors; None keeps theirs.
    """

    def __init__(self, model: nn.Module, dtype: str | None):
        """List the tensors; nothing is gathered.

        Args:
            model: The model, sharded or not.
            dtype: Dtype of floating-point tensors; None keeps theirs.
        """
        self.dtype = DTYPES[dtype] if dtype else None
        self._merge_of = lora_merges(model)
        named = [(name, plain_name(name), tensor) for name, tensor in state_tensors(model)]
        self._tensors = [(name, plain, tensor.detach()) for name, plain, tensor in named if plain is not None]

    def sizes(self) -> list[int]:
        """Return the bytes of each tensor."""
        return [tensor.numel() * self._dtype_of(tensor).itemsize for _, _, tensor in self._tensors]

    def take(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, whole tensor on the model's device), one at a time. A collective.

        A tensor is cast before it is gathered. One that a rank has as a whole, or that an adapter was merged into, in float32,
        is left to `cast`, or to the copy that is made of it.
        """
        for name, plain, tensor in self._tensors[start:stop]:
            if name in self._merge_of:
                yield plain, self._merge_of[name](whole(tensor), whole)
            else:
                yield plain, whole(self.cast(tensor) if is_divided(tensor) else tensor)

    def cast(self, tensor: Tensor) -> Tensor:
        """Return a tensor in the dtype in which it leaves the learner."""
        return tensor.to(self._dtype_of(tensor))

    def _dtype_of(self, tensor: Tensor) -> torch.dtype:
        return self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype


def full_state(model: nn.Module, dtype: str | None = None, keep: bool = True) -> list[tuple[str, Tensor]]:
    """Copy the whole state to the CPU, adapters merged. A collective.

    Args:
        model: The model, sharded or not.
        dtype: Dtype of floating-point tensors; None keeps theirs.
        keep: Whether this rank wants the state; else it only takes part and gets [].

    Returns:
        (name, tensor) in the model's order.
    """
    source = WeightSource(model, dtype)
    return [(name, source.cast(tensor).to("cpu", copy=True)) for name, tensor in source.take() if keep]


def gathered_state(model: nn.Module, dtype: str | None = None, keep: bool = True) -> list[tuple[str, Tensor]]:
    """Return `full_state` without copies: whole CPU tensors of the right dtype are the live ones. A collective."""
    source = WeightSource(model, dtype)
    return [(name, source.cast(tensor).to("cpu")) for name, tensor in source.take() if keep]


def export_policy(model: Any, state: list[tuple[str, Tensor]], dtype: str, source: str, folder: Path) -> None:
    """Write a Hugging Face folder that AutoModelForCausalLM and vLLM load. Not a collective: one rank calls it.

    Args:
        model: The model, for its class and config.
        state: (name, tensor) of the whole state.
        dtype: Dtype of the state, noted in the config.
        source: Folder or hub id whose tokenizer is copied.
        folder: Where to write; made when missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The model as it would be loaded: without shards and adapters.
    with torch.device("meta"):
        plain = type(model)(model.config)
    plain.save_pretrained(folder, state_dict=dict(state))
    # save_pretrained notes the dtype of the live float32 parameters, not that of the state.
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = dtype
    config["use_cache"] = True
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    copy_tokenizer(source, folder)


def copy_tokenizer(source: str, folder: Path) -> None:
    """Copy tokenizer, chat template and generation config of `source`, a folder or a hub id, into `folder`."""
    if not Path(source).is_dir():
        source = snapshot_download(source, allow_patterns=list(TOKENIZER_FILES))
    for pattern in TOKENIZER_FILES:
        for file in sorted(Path(source).glob(pattern)):
            if file.is_file():
                # Not the file modes: those of a hub's cache may be read-only.
                shutil.copyfile(file, folder / file.name)
