"""The policy as a torch model: loading, sharding with FSDP2, gathering and exporting.

Promises
- Master parameters are float32 whatever the compute dtype is.
- A gathered state lists every parameter once, in the model's own fixed order; a tied output layer is not repeated.
- After a forward pass without a backward pass call `reshard`: FSDP2 keeps the root's parameters gathered otherwise, and
  the next forward pass would read stale ones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from kray.config.schema import LoraConfig
from kray.errors import ConfigError, KrayError
from kray.train.lora import add_lora, lora_merges, plain_name
from kray.train.supported_models import check_supported

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OWN = "eager"  # the attention that a model's own code computes

transformers_logging.disable_progress_bar()  # in a job stdout is no terminal

# What a tokenizer and a generation configuration are made of, in a Hugging Face folder.
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
    activation_checkpointing: bool = False,
    lora: LoraConfig | None = None,
    empty: bool = False,
    checked: bool = True,
) -> Any:
    """Load the model at `path` (a Hugging Face folder or hub id) on the CPU, its parameters in float32.

    It is in eval mode and stays there: dropout, layers left out and noise at a router would move log-probabilities, and the
    ratio of new to old ones must come from the weights alone. Its attention is the model's own, see `set_attention`.

    Args:
        dtype: That of compute, kept in the config for exports.
        activation_checkpointing: Whether the decoder layers' activations are computed again in the backward pass.
        empty: Parameters have a shape and no memory.
        checked: Refuse what kray does not train. Exports also take what earlier versions trained.

    Raises:
        ConfigError: A dtype, path or model that cannot be used.
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
    except (
        Exception
    ) as error:  # KeyError of an unknown kind of positions, RuntimeError of shapes that differ: dozens of kinds
        why = str(error) if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"model.path {path!r} cannot be loaded: {why}") from error
    model.config.use_cache = False
    if lora is not None:
        add_lora(model, lora)
    if activation_checkpointing:
        for layer in decoder_layers(model):
            # transformers' own switch works in train mode alone.
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return model.eval()


def set_attention(model: Any, name: str) -> bool:
    """Have the model compute attention by the function `name`, OWN for its own; returns whether it can.

    Models that do not look their attention up in transformers' interface can compute OWN alone.
    """
    # FSDP's class, made around the model's, has no source code to look into.
    kind = next(k for k in type(model).__mro__ if issubclass(k, PreTrainedModel) and not issubclass(k, FSDPModule))
    if not kind._can_set_attn_implementation():
        return name == OWN
    model.set_attn_implementation(name)
    return True


@contextmanager
def _without_memory() -> Iterator[None]:
    """Inside, parameters of new modules are made on the meta device; buffers are computed as ever."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]


def _fill_from_rank_0(module: nn.Module, done: dict[int, Any]) -> None:
    """Gives the module's parameters and buffers memory where they have none, and rank 0's values. A collective.

    done: what has been filled, by the id of what it was before: a tied parameter stays one.
    """
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is None or isinstance(parameter, DTensor):
                continue
            if id(parameter) not in done:
                filled: nn.Parameter = parameter
                if parameter.is_meta:
                    filled = nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
                _broadcast(filled.detach())
                done[id(parameter)], done[id(filled)] = filled, filled
            setattr(part, name, done[id(parameter)])
        for buffer in part._buffers.values():
            if buffer is not None and id(buffer) not in done:
                _broadcast(buffer)
                done[id(buffer)] = buffer


def _broadcast(tensor: Tensor) -> None:
    """Rank 0's bytes into everyone's tensor: gloo need not know the dtype."""
    if tensor.numel():
        dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=0)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The ModuleList that holds the most parameters: the decoder layers, under whatever name."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise ConfigError(f"model.path: {type(model).__name__} has no list of layers that could be sharded")
    return max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))


def shard(model: nn.Module, mesh: DeviceMesh, dtype: str = "float32") -> nn.Module:
    """Shards each decoder layer, then the rest, over the 1-d mesh in place (FSDP2); returns the model.

    Values are rank 0's: they go to the other ranks one layer at a time, so that a rank holds at most its shards and one
    whole layer (rank 0 holds the model that it has read). Parameters are gathered in `dtype` and stay float32 in the
    shards; gradients are reduced in float32.
    """
    policy = MixedPrecisionPolicy()
    if DTYPES[dtype] != torch.float32:
        policy = MixedPrecisionPolicy(param_dtype=DTYPES[dtype], reduce_dtype=torch.float32)
    done: dict[int, Any] = {}
    keep = [*model.parameters(), *model.buffers()]  # ids must not be used again while `done` speaks of them
    layers = list(decoder_layers(model))
    # FSDP cannot shard a parameter in two groups: layers that share parameters (Zamba) are sharded with the rest.
    owners = Counter(id(parameter) for layer in layers for parameter in layer.parameters())
    layers = [layer for layer in layers if all(owners[id(parameter)] == 1 for parameter in layer.parameters())]
    for part in [*layers, model]:
        if mesh.size() > 1:
            _fill_from_rank_0(part, done)
        fully_shard(part, mesh=mesh, mp_policy=policy)
    del keep
    return model


def state_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter once, then the buffers that belong to the state: names and (sharded) tensors, in a fixed order."""
    named = list(model.named_parameters())  # yields a tied parameter under its first name only
    persistent = model.state_dict().keys()
    return named + [(name, buffer) for name, buffer in model.named_buffers() if name in persistent]


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of the model: `model.<name>` -> live (sharded) tensor of all that is not frozen.

    Frozen parameters are the start model's; so a checkpoint of LoRA is small.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {f"model.{name}": tensor for name, tensor in state_tensors(model) if name not in frozen}


def _policy_tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """(name in the model, plain name, tensor) of what is handed out: adapters come merged into what they adapt."""
    for name, tensor in state_tensors(model):
        plain = plain_name(name)
        if plain is not None:
            yield name, plain, tensor


def _whole(tensor: Tensor) -> Tensor:
    """The tensor itself where one rank holds all of it, else gathered. A collective."""
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.to_local() if tensor.device_mesh.size() == 1 else tensor.full_tensor()


def _gathered(model: nn.Module, dtype: str | None) -> Iterator[tuple[str, Tensor]]:
    """Name and whole tensor of the state, one at a time on the model's device, floats in `dtype`. A collective."""
    merge_of = lora_merges(model)
    for name, plain, tensor in _policy_tensors(model):
        tensor = _whole(tensor.detach())
        if name in merge_of:
            tensor = merge_of[name](tensor, _whole)
        yield plain, tensor.to(DTYPES[dtype]) if dtype and tensor.is_floating_point() else tensor


def full_state(model: nn.Module, dtype: str | None = None, keep: bool = True) -> list[tuple[str, Tensor]]:
    """The whole state on the CPU, floats in `dtype`. A collective: every rank must call it.

    Where `keep` is false, only takes part and returns [].
    """
    return [(name, tensor.to("cpu", copy=True)) for name, tensor in _gathered(model, dtype) if keep]


def gathered_state(model: nn.Module, dtype: str | None = None, keep: bool = True) -> list[tuple[str, Tensor]]:
    """`full_state` without copies: tensors that are whole, on the CPU and of the right dtype are the live ones."""
    return [(name, tensor.to("cpu")) for name, tensor in _gathered(model, dtype) if keep]


def state_digest(state: list[tuple[str, Tensor]]) -> str:
    """32 hex digits that depend on every name, shape, dtype and bit of the state."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in state:
        digest.update(f"{name}\x1f{tuple(tensor.shape)}\x1f{tensor.dtype}\x1e".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def export_policy(model: Any, state: list[tuple[str, Tensor]], dtype: str, source: str, folder: Path) -> None:
    """Writes a Hugging Face folder: config, safetensors with `state`, and the tokenizer of `source`.

    `folder` is made; AutoModelForCausalLM and vLLM load it. Not a collective: one rank calls it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):  # the model as it would be loaded: without shards and adapters
        plain = type(model)(model.config)
    plain.save_pretrained(folder, state_dict=dict(state))
    # save_pretrained notes the dtype of the live parameters, which are the float32 master, not of the state.
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = dtype
    config["use_cache"] = True
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    copy_tokenizer(source, folder)


def copy_tokenizer(source: str, folder: Path) -> None:
    """Puts tokenizer, chat template and generation config of `source` (a folder or a hub id) into `folder` as they are."""
    if not Path(source).is_dir():
        source = snapshot_download(source, allow_patterns=list(TOKENIZER_FILES))
    for pattern in TOKENIZER_FILES:
        for file in sorted(Path(source).glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)  # the modes of a hub's cache are its own affair
